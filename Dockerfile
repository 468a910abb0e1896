# opsd beside the programs of one PostgreSQL, for a site whose servers are containers: docs/docker.md.
#
#   docker build --build-arg POSTGRES=postgres:17 --tag opsd:17 .
#
# POSTGRES is the image that the site's own server runs, or one of its major version made on Debian 11 or newer. pg_dump and
# pg_restore come from it, and so does the server that a rehearsal starts, with the extensions that it has.
ARG RUST=rust:1-bullseye
ARG POSTGRES=postgres:17-bookworm

FROM ${RUST} AS build
WORKDIR /src
COPY . .
RUN cargo build --release --locked --bin opsd

FROM ${POSTGRES}
COPY --from=build /src/target/release/opsd /usr/local/bin/opsd
# Better here than at night: an image with an older C library than the build's does not run it.
RUN opsd --version
# What a rehearsal needs on disk; a volume that is mounted here gets this owner.
RUN mkdir -m 0700 /var/lib/opsd && chown postgres:postgres /var/lib/opsd
USER postgres
WORKDIR /var/lib/opsd
STOPSIGNAL SIGTERM
ENTRYPOINT ["opsd"]
CMD ["--help"]
