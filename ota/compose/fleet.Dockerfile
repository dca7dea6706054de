# syntax=docker/dockerfile:1
# edgekit-fleet: ingest, exporter and store (docs/fleet-metrics.md), built by ota/compose/compose.yml.
FROM python:3.12-slim-bookworm AS build
WORKDIR /src
COPY . .
# Wheels only, so that nothing is compiled; the exact versions are in constraints.txt.
RUN python -m venv /opt/edgekit \
    && /opt/edgekit/bin/pip install --no-cache-dir --only-binary=:all: \
        --constraint constraints.txt ".[fleet]" \
    && /opt/edgekit/bin/pip check \
    && /opt/edgekit/bin/pip uninstall -y pip

FROM python:3.12-slim-bookworm
LABEL org.opencontainers.image.title="edgekit-fleet" \
    org.opencontainers.image.licenses="Apache-2.0"
COPY --from=build /opt/edgekit /opt/edgekit
RUN useradd --no-log-init --uid 10001 --user-group --no-create-home \
        --home-dir /var/lib/edgekit --shell /usr/sbin/nologin edgekit \
    && install -d -o edgekit -g edgekit -m 0750 /var/lib/edgekit
ENV PATH=/opt/edgekit/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1
VOLUME /var/lib/edgekit
WORKDIR /var/lib/edgekit
USER 10001
ENTRYPOINT ["edgekit-fleet"]
CMD ["--help"]
