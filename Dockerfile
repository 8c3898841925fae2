# The gateway as an image: built from the same lock and hashes as a checkout, run by an account without rights.

FROM python:3.11-slim-trixie AS build
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1 PIP_ROOT_USER_ACTION=ignore
RUN python -m venv /opt/gateway
WORKDIR /src
# The lock first: a change of our own code does not install the world again.
COPY requirements.lock ./
RUN /opt/gateway/bin/pip install --require-hashes -r requirements.lock
COPY pyproject.toml LICENSE ./
COPY migrations ./migrations
COPY gateway ./gateway
RUN /opt/gateway/bin/pip install --no-deps --no-build-isolation --no-index .

FROM python:3.11-slim-trixie
# A number, so that Kubernetes' runAsNonRoot can see that it is not root.
RUN groupadd --gid 10001 gateway \
 && useradd --uid 10001 --gid gateway --no-create-home --home-dir /var/lib/kimi-gateway --shell /usr/sbin/nologin gateway \
 && install --directory --owner=gateway --group=gateway --mode=0750 /var/lib/kimi-gateway
COPY --from=build /opt/gateway /opt/gateway
COPY config /etc/kimi-gateway
ENV PATH=/opt/gateway/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    GATEWAY_HOST=0.0.0.0 \
    GATEWAY_PORT=8080 \
    GATEWAY_CONFIG_DIR=/etc/kimi-gateway \
    GATEWAY_DATA_DIR=/var/lib/kimi-gateway
WORKDIR /var/lib/kimi-gateway
USER 10001:10001
VOLUME /var/lib/kimi-gateway
EXPOSE 8080
HEALTHCHECK --interval=10s --timeout=3s --start-period=30s --retries=3 \
    CMD ["python", "-c", "import os, urllib.request as u; u.urlopen('http://127.0.0.1:' + os.environ['GATEWAY_PORT'] + '/healthz', timeout=2)"]
# SIGTERM lets running answers finish and the journal close.
STOPSIGNAL SIGTERM
ENTRYPOINT ["gateway"]
CMD ["serve"]
