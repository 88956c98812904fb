# hadolint global ignore=DL3013
# (that rule wants one version of each package here; setup.cfg says which ones work)
# docker build -t glip .                                  for CPUs
# docker build -t glip --build-arg TORCH=cu128 .           for NVIDIA GPUs: PyTorch with its CUDA libraries
# docker run --rm -v "$PWD:/work" --user "$(id -u):$(id -g)" glip detect photo.jpg "a red bus" --out out
# With a GPU: docker run --gpus all ...; a folder for downloaded weights: -v glip-cache:/cache
FROM python:3.13-slim AS build
RUN pip install --no-cache-dir build
WORKDIR /source
COPY . .
RUN python -m build --wheel --outdir /wheel

FROM python:3.13-slim
ARG TORCH=cpu
ARG EXTRAS=heic,parquet,serve,track,video
RUN pip install --no-cache-dir torch torchvision --index-url "https://download.pytorch.org/whl/${TORCH}"
RUN --mount=type=bind,from=build,source=/wheel,target=/wheel \
    pip install --no-cache-dir "$(echo /wheel/*.whl)[${EXTRAS}]"
RUN useradd --uid 1000 --create-home glip && mkdir -m 1777 /cache /work
ENV HF_HOME=/cache PYTHONDONTWRITEBYTECODE=1
USER 1000
WORKDIR /work
ENTRYPOINT ["glip"]
CMD ["--help"]
