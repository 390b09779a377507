FROM scratch
ENV A=1
WORKDIR /a/b
COPY a.txt .
USER 7:8
WORKDIR owned
COPY --chown=7:8 b.txt c.md /c/
CMD ["/x"]
