FROM @small AS base
ARG BEFORE=1 OTHER
ENV A=1 B="two words" C=$A-$BEFORE
ENV OLD style
ENV A=again D=${A:+set} E=${UNSET:-default} F="quo'ted" G=\$literal H='$A'
LABEL one=1 two="two words" "three four"=$A multi="a \
 b"
EXPOSE 80 53/udp 8000-8002
VOLUME ["/data", "/more"]
VOLUME /third /fourth
WORKDIR /work/here
WORKDIR sub
WORKDIR $A
USER app:extra
STOPSIGNAL SIGUSR1
STOPSIGNAL 9
SHELL ["/bin/sh", "-e", "-c"]
HEALTHCHECK --interval=5s --timeout=3s --start-period=2s --start-interval=1s --retries=4 CMD wget -q localhost
MAINTAINER Somebody <some@body.test>
ONBUILD RUN echo later
ONBUILD COPY . /x
ENTRYPOINT exec echo $A
CMD echo "hi"
#flags --label=from=flag --build-arg=BEFORE=given
