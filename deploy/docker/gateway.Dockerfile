# The gateway. Build from the repository root:
#   docker build -f deploy/docker/gateway.Dockerfile -t hybrid-llm-router .
FROM python:3.11.13-slim-bookworm AS build
WORKDIR /src
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY router router
COPY classifier classifier
COPY local_llm local_llm
RUN python -m venv /opt/venv \
 && /opt/venv/bin/pip install --no-cache-dir --disable-pip-version-check -c constraints.txt '.[postgres]'

FROM python:3.11.13-slim-bookworm
RUN useradd --uid 10001 --user-group --no-create-home --home-dir /data --shell /usr/sbin/nologin router \
 && install -d -o router -g router -m 0700 /data
COPY --from=build /opt/venv /opt/venv
ENV PATH=/opt/venv/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
USER 10001:10001
WORKDIR /data
VOLUME /data
EXPOSE 8080
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=3s --start-period=20s \
  CMD ["python", "-c", "import urllib.request as u; u.urlopen('http://127.0.0.1:8080/health/liveness', timeout=2)"]
ENTRYPOINT ["hybrid-llm-router"]
CMD ["serve", "--host", "0.0.0.0", "--config", "/etc/hybrid-llm-router/router.yaml"]
