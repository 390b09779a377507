# syntax=docker/dockerfile:1-labs
FROM @small AS stage
RUN mkdir -p /s/deep/er && echo s > /s/deep/file && chown -R 33:44 /s && mkdir /l && ln -s /s /l/dir
FROM @small
ARG OWNER=app
COPY --chown=app:extra --chmod=0640 a.txt /owned
COPY --chown=$OWNER a.txt /owned2
COPY --chown=33 tree /numbers
COPY --chown=:44 a.txt /grouponly
COPY --chown=www-data tree2 /named/deep/er
COPY --chmod=u=rwX,go=rX tree /symbolic
COPY --chmod=755 tree /numeric
COPY --chmod=a-x,u+s exec /minus
COPY --chmod=g+w tree/ /plus/
COPY --exclude=*.md --exclude=tree/sub/y . /excluded/
COPY --exclude=**/*.md tree /excluded2
COPY --exclude=sub tree /excluded3
COPY --parents tree/sub/*.md ./tree/./sub/y /parents/
COPY --parents **/y /deep/
COPY --parents --from=stage /s/deep/file /parents2/
COPY --parents --chown=3:4 tree/sub/deep /parents3/
COPY --parents --exclude=**/z.md tree /parents4/
COPY --link a.txt /linked/dir/a.txt
COPY --link --from=stage --chown=7:8 /s/deep /linked/stage
COPY --link tree/ /alias2/
COPY --link --chmod=0711 tree2 /linked/mode
COPY --from=@small /etc/passwd /from-image
COPY --from=0 /s/deep/file /from-index
COPY --from=stage --parents /s/./deep/er /pdot/
USER app
COPY a.txt /asuser/
WORKDIR /asuserdir
COPY b.txt .
