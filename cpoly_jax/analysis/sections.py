"""What a report says: sections with a few sentences, figures and tables, made of an analysis's numbers.

The same tables become CSV, JSON and HTML, so a section is made once, and neither drawn nor written here.
"""

from __future__ import annotations

from cpoly_jax.analysis import comparison_sections, parts, relation_sections, routing_sections
from cpoly_jax.analysis.findings import Findings

_SECTIONS = (
    routing_sections.routing_section, routing_sections.statistics_section, relation_sections.alike_section,
    relation_sections.borrowing_section, relation_sections.diversity_section, relation_sections.conflict_section,
    relation_sections.transfer_section, comparison_sections.truth_section, comparison_sections.gains_section)


def sections(found: Findings) -> list[parts.Section]:
  """Returns the sections that a run has something to say in."""
  return [section for section in (make(found) for make in _SECTIONS) if section is not None]
