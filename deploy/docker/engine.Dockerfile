# The engine: upstream's image of the version that the tests run, as an ordinary user. Its weights are a volume.
#   docker build -f deploy/docker/engine.Dockerfile -t hybrid-llm-engine deploy/docker
FROM vllm/vllm-openai:v0.32.0
RUN useradd --uid 10002 --user-group --no-create-home --home-dir /models --shell /usr/sbin/nologin engine \
 && install -d -o engine -g engine -m 0750 /models
# The development server lets anyone who reaches the port call any function of the engine: it is never switched on.
ENV HOME=/models HF_HOME=/models XDG_CACHE_HOME=/models/cache VLLM_CACHE_ROOT=/models/cache/vllm \
    VLLM_NO_USAGE_STATS=1 DO_NOT_TRACK=1 VLLM_SERVER_DEV_MODE=0
USER 10002:10002
WORKDIR /models
VOLUME /models
STOPSIGNAL SIGTERM
ENTRYPOINT ["vllm", "serve"]
