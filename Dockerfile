# The image of `cargo xtask image`, for those who prefer `docker build .`. The same files, though not the same
# bytes: docker puts times of its own into layers. For x86-64.
#
# The context needs the git history of the commit, which the image names: docker build <work tree>.
FROM docker.io/library/rust:1.95-bookworm AS build
WORKDIR /portcullis
COPY . .
# Installs what is missing (Debian packages, the eBPF compiler and linker), then builds static programs.
RUN cargo xtask image --rootfs /image

FROM scratch
LABEL org.opencontainers.image.title="Portcullis" \
      org.opencontainers.image.description="Kubernetes NetworkPolicy in eBPF, beside any CNI" \
      org.opencontainers.image.licenses="Apache-2.0 AND (MIT OR GPL-2.0-only)" \
      org.opencontainers.image.source="https://github.com/portcullis/portcullis"
COPY --from=build /image/ /
ENV PATH=/usr/bin
USER 0:0
ENTRYPOINT ["/usr/bin/policy-agent"]
CMD ["run"]
