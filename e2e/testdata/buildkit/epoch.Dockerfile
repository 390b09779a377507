FROM @small
ARG SOURCE_DATE_EPOCH
RUN echo $SOURCE_DATE_EPOCH > /epoch
COPY a.txt /
WORKDIR /dir/deep
ADD archive.tar /arch
ADD --chmod=0755 a.txt /x
COPY --link tree /linked
#flags --build-arg=SOURCE_DATE_EPOCH=1767225000
