# syntax=docker/dockerfile:1
# easyrec-mm for containers; docs/scaling.md describes it.
#   docker build --tag easyrec-mm .                                  # computes on CPUs
#   docker build --tag easyrec-mm-gpu --build-arg PACKAGES=gpu .     # on NVIDIA GPUs, whose driver the machine provides
ARG PYTHON=3.12

FROM python:${PYTHON}-slim AS build
# base or gpu: the list of packages in requirements/.
ARG PACKAGES=base
WORKDIR /build
# Packages change less often than sources, so that their layer is used again. The versions are those of scripts/setup.
COPY requirements requirements
RUN --mount=type=cache,target=/root/.cache/pip python -m venv /opt/easyrec-mm \
    && /opt/easyrec-mm/bin/pip install --disable-pip-version-check --only-binary :all: \
        --constraint requirements/lock.txt --constraint requirements/gpu.txt --requirement requirements/${PACKAGES}.in
RUN --mount=type=cache,target=/root/.cache/pip python -m venv /opt/build \
    && /opt/build/bin/pip install --disable-pip-version-check --only-binary :all: \
        --constraint requirements/lock.txt setuptools grpcio-tools
COPY setup.py pyproject.toml MANIFEST.in README.md LICENSE ./
COPY protos protos
COPY easyrec_mm easyrec_mm
RUN /opt/build/bin/pip wheel --disable-pip-version-check --no-deps --no-build-isolation --wheel-dir wheels . \
    && /opt/easyrec-mm/bin/pip install --disable-pip-version-check --no-deps wheels/*.whl

FROM python:${PYTHON}-slim
RUN groupadd --gid 1000 easyrec && useradd --uid 1000 --gid 1000 --create-home easyrec
COPY --from=build /opt/easyrec-mm /opt/easyrec-mm
ENV PATH=/opt/easyrec-mm/bin:${PATH} PYTHONUNBUFFERED=1
# By number, which Kubernetes can tell from that of root.
USER 1000:1000
WORKDIR /home/easyrec
ENTRYPOINT ["easyrec-mm"]
