# syntax=docker/dockerfile:1-labs
FROM @small
ADD @http/blob.bin /named/
ADD @http/blob.bin /as
ADD --chmod=0755 --chown=33:33 @http/blob.bin /checked
ADD @http/archive.tar /download.tar
ADD --unpack=true @http/archive.tar /remote/
ADD --unpack @http/archive.tar /remote2
ADD @http/blob.bin a.txt /mixed/
ADD --link @http/blob.bin /linked/
WORKDIR /wd
ADD @http/blob.bin .
