# syntax=docker/dockerfile:1-labs
FROM @small
ADD @git /head
ADD @git#v1 /tag
ADD @git#main:sub /sub
ADD --chown=33:33 @git#main:sub /owned
ADD --link @git#v1 /linked
ADD --exclude=sub @git /excl
ADD @git?tag=v1 /query
ADD @git?branch=main&subdir=sub /query2
