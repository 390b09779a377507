# syntax=docker/dockerfile:1-labs
ARG GLOBAL=global
FROM @small AS first
ARG GLOBAL
ARG FROM_ARG=default
ENV FROM_ENV=env FROM_BOTH=$FROM_ARG-more
WORKDIR /work
RUN echo "$FROM_ARG $FROM_ENV $FROM_BOTH $GLOBAL" > args; pwd > pwd; id > root; echo $HOME > roothome; umask > umask; env | grep -v -e ^OTEL -e ^TRACE -e PROXY -e proxy | sort > env; hostname > hostname; tr '\0' '\n' < /proc/self/cmdline > cmdline
RUN ["/bin/sh", "-c", "echo $0 exec form > exec; grep -i nonewprivs /proc/self/status > privs; ls /dev | grep -v otel > dev; ls -a / > rootdir; stat -c '%a %u:%g %F' /dev /dev/shm /dev/mqueue /tmp > stats"]
RUN <<EOF
cat > heredoc <<'IN'
nested
IN
EOF
SHELL ["/bin/busybox", "ash", "-ec"]
RUN tr '\0' ' ' < /proc/$$/cmdline > shell
RUN chown app:app /work
USER app
RUN id > user; echo $HOME > userhome; touch here
USER 1234
RUN id > /tmp/nobody; echo $HOME > /tmp/nobodyhome
USER app:extra
RUN id > /tmp/group
USER 33:4321
RUN id > /tmp/numbers
ENV HOME=/tmp PATH=/bin
RUN echo $HOME $PATH > /tmp/homepath
