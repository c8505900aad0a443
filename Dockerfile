# One image, two stages. Every third-party wheel is checked against the hashes of the lock files; the image that runs
# has neither pip nor a build backend, writes only below /var/lib/sidecar, and needs no root.
ARG PYTHON_IMAGE=python:3.13-slim

FROM ${PYTHON_IMAGE} AS builder
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PIP_NO_CACHE_DIR=1 \
    PIP_NO_INPUT=1 \
    PIP_ROOT_USER_ACTION=ignore
WORKDIR /src
COPY requirements.lock requirements-build.lock ./
RUN pip install --require-hashes -r requirements-build.lock \
    && pip wheel --require-hashes --only-binary :all: -r requirements.lock --wheel-dir /wheels
COPY pyproject.toml hatch_build.py LICENSE README.md ./
COPY packages/api packages/api
COPY clients/python clients/python
COPY sidecar sidecar
COPY examples/demo_agent examples/demo_agent
RUN pip wheel --no-index --no-deps --no-build-isolation --wheel-dir /wheels ./packages/api ./clients/python . \
    && python -m venv --without-pip /opt/sidecar \
    && pip --python /opt/sidecar/bin/python install --no-index --no-deps --compile /wheels/*.whl

FROM ${PYTHON_IMAGE} AS runtime
LABEL org.opencontainers.image.title="ws-sidecar" \
      org.opencontainers.image.licenses="Apache-2.0"
RUN rm -rf /usr/local/lib/python3.*/site-packages/pip /usr/local/lib/python3.*/site-packages/pip-*.dist-info \
        /usr/local/lib/python3.*/ensurepip /usr/local/bin/pip* \
    && install -d -o 65532 -g 65532 -m 0750 /var/lib/sidecar
COPY --from=builder /opt/sidecar /opt/sidecar
ENV PATH=/opt/sidecar/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1
# Keys made at the first start and the audit trail belong here; with a read-only root, mount it.
WORKDIR /var/lib/sidecar
VOLUME ["/var/lib/sidecar"]
USER 65532:65532
# WebSocket, gRPC, operations. All three listen on loopback until the configuration says otherwise.
EXPOSE 8080 50051 8081
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=3s --start-period=10s --retries=3 CMD ["sidecar", "health"]
ENTRYPOINT ["sidecar"]
CMD ["serve"]
