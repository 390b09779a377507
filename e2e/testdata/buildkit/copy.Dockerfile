# syntax=docker/dockerfile:1-labs
FROM @small AS stage
RUN mkdir -p /s/deep && echo s > /s/deep/file && ln -s deep /s/link && ln -s /s/deep/file /s/abs && chown -R 33:44 /s && toolbox setcap /s/deep/file && ln /s/deep/file /s/hard && mkfifo /s/fifo && chmod 4755 /s/hard && touch -d '2020-01-01 00:00:00' /s/deep/file /s/deep /s
FROM @small
RUN mkdir -m 0700 /real && chown 9:9 /real && ln -s real /alias && ln -s /etc/passwd /filelink && ln -s /nowhere /dangle
COPY a.txt b.txt /many/
COPY tree /tree
COPY tree/ /tree/again/
COPY tree2 /tree
COPY *.txt c* /wild/
COPY exec c.md /modes/
COPY ["sp ace", "/spaces/"]
COPY "[[]bracket]" /brackets/
COPY a.txt /renamed
COPY . /everything/
COPY tree/x /tree/x
COPY link /link
COPY tree/dirlink /dirlink
COPY tree/dirlink/ /dirlink2/
COPY tree/dir*/y /dirlink3/
COPY a.txt /alias/followed
COPY tree /alias
COPY a.txt /filelink
COPY a.txt /real
COPY --from=stage /s /copied
COPY --from=stage /s/link /copied2
COPY --from=stage /s/link/ /copied3
COPY --from=stage /s/abs /abs
COPY --from=stage /s/l*/file /globbed
COPY --from=stage --chown=0:0 /s/deep/file /rooted
COPY --from=stage --chmod=0600 /s /modes2
COPY tree/empty/ /emptied/
COPY tree/e* /emptied2/
COPY a.txt relative/dir/
WORKDIR /wd
COPY a.txt .
COPY a.txt ./sub
COPY tree ../up
