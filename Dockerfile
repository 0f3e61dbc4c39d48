# AtomDiffuser with the workflow, on the CPU or an NVIDIA GPU:
#     docker build -t atomdiffuser .
#     docker run --rm --gpus all --user $(id -u):$(id -g) -v /path/to/session:/session atomdiffuser
# Leave out `--gpus all` without a GPU.
FROM python:3.12-slim

ENV PIP_NO_CACHE_DIR=1 PYTHONUNBUFFERED=1 HOME=/tmp MPLCONFIGDIR=/tmp/matplotlib XDG_CACHE_HOME=/tmp/cache
WORKDIR /opt/atomdiffuser
COPY . .
# torch's usual wheels carry CUDA; TORCH_INDEX=https://download.pytorch.org/whl/cpu makes an image of a third the size
ARG TORCH_INDEX=https://download.pytorch.org/whl/cu128
RUN pip install --extra-index-url "$TORCH_INDEX" ".[demo,export]" snakemake-executor-plugin-slurm && \
    atomdiffuser --version

ENTRYPOINT ["atomdiffuser"]
CMD ["run", "/session"]
