FROM @small
HEALTHCHECK NONE
HEALTHCHECK CMD ["true"]
CMD ["x"]
ENTRYPOINT ["/bin/busybox", "echo"]
USER 33
RUN ["true"]
ENTRYPOINT []
VOLUME /tmp
WORKDIR /tmp
