# The image of the bridge: `docker build -t whatsapp2mqtt .`; how to run it: docs/installation.md.
#
# All that is installed is pinned by requirements*.txt, with hashes. The base is pinned by its digest where that is
# given, as a release does: --build-arg BASE=docker.io/library/python:3.13-slim-trixie@sha256:<digest>, with the digest
# that `docker buildx imagetools inspect docker.io/library/python:3.13-slim-trixie` prints.
ARG BASE=docker.io/library/python:3.13-slim-trixie

# hadolint ignore=DL3006
FROM ${BASE} AS build
WORKDIR /src
COPY requirements.txt requirements-build.txt ./
# One environment that makes the wheel, and is left behind; and one with what the bridge runs with, without pip.
RUN python3 -m venv /build \
 && /build/bin/python -m pip install --no-cache-dir --require-hashes -r requirements-build.txt \
 && python3 -m venv --without-pip /opt/whatsapp2mqtt \
 && /build/bin/python -m pip --python /opt/whatsapp2mqtt/bin/python install --no-cache-dir --no-compile --prefer-binary \
      --require-hashes -r requirements.txt
COPY pyproject.toml README.md LICENSE config.example.yaml ./
COPY systemd systemd
COPY bridge bridge
# Compiled without times in it: the same sources make the same files, and nothing is written when it runs.
RUN /build/bin/hatchling build -t wheel -d /dist \
 && /build/bin/python -m pip --python /opt/whatsapp2mqtt/bin/python install --no-cache-dir --no-compile --no-deps --no-index \
      /dist/*.whl \
 && PYTHONHASHSEED=0 /opt/whatsapp2mqtt/bin/python -m compileall -q --invalidation-mode unchecked-hash \
      /opt/whatsapp2mqtt/lib

# hadolint ignore=DL3006
FROM ${BASE}
ARG VERSION=0+unreleased
ARG REVISION=unknown
LABEL org.opencontainers.image.title="whatsapp2mqtt" \
      org.opencontainers.image.description="WhatsApp Business callbacks in by HTTP, MQTT topics out, nothing lost between." \
      org.opencontainers.image.licenses="MIT" \
      org.opencontainers.image.documentation="https://pypi.org/project/whatsapp2mqtt/" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
# Nothing in it can install anything; and the volume belongs to the user that the bridge runs as.
RUN rm -rf /usr/local/bin/pip* /usr/local/lib/python3*/ensurepip /usr/local/lib/python3*/site-packages/pip* \
 && install -d -o 10001 -g 10001 -m 700 /data
COPY --from=build /opt/whatsapp2mqtt /opt/whatsapp2mqtt
# A container is reached from outside, so the bridge does not start before it is said who may post. The page stays
# within the container, for `docker exec` and the health check.
ENV PATH=/opt/whatsapp2mqtt/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    STATE_DIRECTORY=/data \
    WHATSAPP2MQTT_WEBHOOK__LISTEN=0.0.0.0:8080
USER 10001:10001
VOLUME /data
EXPOSE 8080
HEALTHCHECK --interval=30s --timeout=10s --start-period=2m CMD ["whatsapp2mqtt", "healthy"]
ENTRYPOINT ["whatsapp2mqtt"]
CMD ["run"]
