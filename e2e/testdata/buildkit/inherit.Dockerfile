FROM @small AS one
ENV ONE=1
ONBUILD ENV TRIGGERED=$ONE
ONBUILD RUN echo $TRIGGERED > /triggered
CMD ["one"]
ENTRYPOINT ["first"]
VOLUME /v
LABEL l=1
FROM one AS two
ENTRYPOINT ["second"]
LABEL m=2
RUN mkdir /v && echo x > /v/kept
FROM two
WORKDIR /v/w
