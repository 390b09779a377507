FROM @small AS stage
RUN mkdir /s && mknod /s/zero c 1 5 && mknod -m 0640 /s/disk c 8 1 && chown 1:6 /s/disk
FROM @small
COPY --from=stage /s /copied
COPY --from=stage --chown=7:8 /s /owned
RUN rm /copied/zero && mknod /copied/zero c 1 7
