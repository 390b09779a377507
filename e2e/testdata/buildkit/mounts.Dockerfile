# syntax=docker/dockerfile:1-labs
FROM @small AS stage
RUN mkdir -p /s/deep && echo stage > /s/file && chown 5:6 /s/file && ln -s file /s/link
FROM @small
WORKDIR /w
RUN --mount=type=bind,target=/ctx find /ctx | sort > /found; stat -c '%n %a %u:%g' /ctx /ctx/tree/sub /ctx/tree/x > /stat; touch /ctx/new 2>&1 | tail -c 30 > /ro; true
RUN --mount=type=bind,source=tree,target=/rw,rw touch /rw/new && rm /rw/x && ls /rw > /rwls
RUN --mount=from=stage,source=/s/file,target=/one cat /one > /stage; ls -ln /one | cut -d' ' -f1 > /onels
RUN --mount=from=stage,source=/s,target=relative ls relative > /relative
RUN --mount=from=stage,source=/s/link,target=/lnk cat /lnk > /viaLink
RUN --mount=type=cache,target=/c,mode=0751,uid=3,gid=4,id=goldencache stat -c '%a %u:%g' /c > /cache; echo x > /c/x
RUN --mount=type=cache,target=/c2,id=goldencache,ro ls /c2 > /cachero; touch /c2/y 2>/dev/null || echo ro >> /cachero
RUN --mount=type=cache,target=/c3,from=stage,source=/s,sharing=locked,id=seeded ls -ln /c3 | tr -s ' ' | cut -d' ' -f1,3,4,9 > /seeded
RUN --mount=type=tmpfs,target=/t,size=1m stat -c '%a %u:%g' /t > /tmpfs; grep ' /t ' /proc/mounts | cut -d' ' -f2-3 >> /tmpfs; df -k /t | tail -1 | tr -s ' ' | cut -d' ' -f2 >> /tmpfs
RUN --mount=type=secret,id=s stat -c '%a %u:%g %s' /run/secrets/s > /secret; stat -c '%a %u:%g' /run/secrets >> /secret
RUN --mount=type=secret,id=s,target=/deep/in/here,mode=0440,uid=33,gid=44 stat -c '%a %u:%g' /deep/in/here /deep/in /deep > /secret2
RUN --mount=type=secret,id=s,env=SECRET echo ${#SECRET} > /secret3
RUN --mount=type=secret,id=s,env=SECRET,target=/also cat /also | wc -c > /secret4; echo ${#SECRET} >> /secret4
RUN --mount=type=secret,id=none ls /run/secrets/none > /none 2>&1; true
RUN --mount=type=bind,target=/etc/made/by/mount true
RUN --mount=type=tmpfs,target=/bin/over true
RUN --mount=type=cache,target=/root/.cache --mount=type=cache,target=/root/.other true
RUN --mount=type=cache,target=/existing/deep mkdir /existing/beside
USER app
RUN --mount=type=secret,id=s,required=true cat /run/secrets/s 2>&1 | grep -c enied > /tmp/denied
RUN --mount=type=cache,target=/cu,uid=1000 touch /cu/x && echo ok > /tmp/cu
#flags --secret=id=s,src=@ctx/secret
