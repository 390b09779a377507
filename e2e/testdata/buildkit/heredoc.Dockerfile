# syntax=docker/dockerfile:1
FROM @small
ARG WHO=world
RUN <<EOF
echo "hello $WHO" > /shell
echo "second" >> /shell
EOF
RUN <<"EOF" cat > /quoted
$WHO stays
EOF
RUN <<EOF
#!/bin/busybox ash
echo "own $0" > /shebang
ls -l $0 | cut -d' ' -f1 >> /shebang
EOF
RUN cat <<one - <<two > /both
1
one
2
two
COPY <<one <<"two" /copied/
for $WHO
one
for $WHO
two
COPY --chmod=0750 --chown=app:33 <<-EOF /script
	#!/bin/sh
	echo tabs go
EOF
ADD <<EOF /added
added \$escaped \\ back
EOF
COPY <<EOF a.txt /mixed/
EOF
COPY <<EOF /into/dir/
x
EOF
