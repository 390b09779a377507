# syntax=docker/dockerfile:1-labs
FROM @small
RUN mkdir -p /exist/in && echo old > /exist/in/side && chmod 0700 /exist/in && ln -s /exist /symexist
ADD archive.tar /unpacked/
ADD archive.tgz /unpacked2
ADD archive.tar /exist/
ADD archive.tar /symexist
ADD --chown=7:8 archive.tar /chowned/
ADD --chmod=0644 a.txt /chmodded
ADD --unpack=false archive.tar /kept.tar
ADD --unpack=true archive.tgz /unp/
ADD notarchive.tar /plain.tar
ADD a.txt b.txt archive.tgz /several/
ADD tree /tree
ADD *.txt /wild/
ADD --link archive.tar /linked/
ADD --exclude=sub tree /excl
ADD archive.tar .
