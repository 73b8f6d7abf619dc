# An image that trains, evaluates and infers, for one kind of machine:
#
#   docker build --build-arg ACCELERATOR=gpu --tag cpoly-jax:gpu .
#   docker run --gpus all --volume "$PWD/outputs:/cpoly-jax/outputs" cpoly-jax:gpu --gin_file=gin_configs/cpoly_tiny.gin
#   docker run --entrypoint python cpoly-jax:gpu -m t5x.infer --gin_file=...
#
# The folder of outputs must be writable by user 1000.
FROM python:3.12-slim-bookworm

# cpu, or an extra of setup.py: tpu, gpu.
ARG ACCELERATOR=cpu

ENV PYTHONUNBUFFERED=1 \
    PIP_DISABLE_PIP_VERSION_CHECK=1 \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility

RUN useradd --create-home --uid 1000 cpoly

WORKDIR /cpoly-jax
COPY . .
# Installed in place, so that gin files and launch/worker.sh are found below the working directory.
RUN case "$ACCELERATOR" in \
      cpu) extra= ;; \
      tpu|gpu) extra="[$ACCELERATOR]" ;; \
      *) echo "ACCELERATOR=$ACCELERATOR: write cpu, tpu or gpu" >&2; exit 1 ;; \
    esac \
    && pip install --no-cache-dir -r requirements.txt -e ".$extra" -c constraints.txt \
    && mkdir outputs \
    && chown cpoly outputs

USER 1000
ENTRYPOINT ["python", "-m", "t5x.train"]
CMD ["--help"]
