# syntax=docker/dockerfile:1-labs
# escape=`
ARG BASE=@small
ARG TAG
FROM ${BASE}${TAG:+:$TAG} AS b1
RUN echo one `
 > /one
FROM b1 AS b2
COPY --from=b1 /one /two
COPY --link --from=b1 /one /linked1
COPY --link --chown=9:9 --from=b1 /one /dir/linked2
COPY --link --from=b1 /o* /glob/
FROM scratch AS files
COPY tree /
COPY --link a.txt /a/
COPY --link b.txt /a/
FROM b2
COPY --from=files / /all
COPY --from=files --link / /all2/
COPY --from=files --exclude=sub --exclude=absolute --exclude=dangling / /most
RUN --mount=from=files,target=/f ls /f > /listed
ADD --link archive.tar /arch
WORKDIR /all
RUN rm -rf /all2/sub && touch /dir/new
