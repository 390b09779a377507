FROM @small
ARG V=a.b.c-d/e P=/some/path/file.tar.gz EMPTY=
ENV M1=${V%.*} M2=${V%%.*} M3=${V#*.} M4=${V##*.} M5=${V/b/X} M6=${V//./_} M7=${UNSET:-d} M8=${UNSET-d} M9=${EMPTY-d} M10=${EMPTY:-d} M11=${V:+yes} M12=${EMPTY+yes} M13=${EMPTY:+yes}
ENV N1=${P##*/} N2=${P%/*} N3="a b" N4='$V' N5=\$V N6=$V$V N7=${V}x N8="quoted \"in\" it" N9=back\\slash
ENV A=1 B=$A
ENV A=2 B=$A
LABEL l.$A=$B "k $V"="v"
WORKDIR /w/$A/${V}
COPY a.txt ${V}/$A.txt
ADD ${EMPTY:-b.txt} $N3/
EXPOSE ${A}00/tcp $A
VOLUME /v/$A
USER ${A}:${EMPTY:-3}
STOPSIGNAL ${A}
RUN echo "$M1 $N4 $N5" > /tmp/x; echo $V
ONBUILD ENV Z=$A
CMD ["$A"]
ENTRYPOINT echo $A
