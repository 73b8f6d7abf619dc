"""What all tests share: each module has gin's registry to itself.

Gin files register what they import, for the whole process; two modules whose files import different `network`s would make each
other's selectors ambiguous.
"""

import copy

from gin import config as gin_config
import pytest


@pytest.fixture(autouse=True, scope='module')
def own_gin_registry(monkeypatch_module):
  registry = gin_config._REGISTRY.copy()
  # The copy's tree is shared below its first level.
  registry._selector_tree = copy.deepcopy(registry._selector_tree)
  monkeypatch_module.setattr(gin_config, '_REGISTRY', registry)
  monkeypatch_module.setattr(gin_config, '_INVERSE_REGISTRY', dict(gin_config._INVERSE_REGISTRY))
  yield


@pytest.fixture(scope='module')
def monkeypatch_module():
  with pytest.MonkeyPatch.context() as patch:
    yield patch
