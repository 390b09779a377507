FROM @small
RUN echo x >> /etc/group
RUN mkdir -p /a/b/c && echo 1 > /a/b/c/f
RUN rm -rf /a/b && mkdir /a/b && echo 2 > /a/b/f
RUN mv /a/b /a/c && mkdir /a/b
RUN rm /a/c/f && touch /a/c/f
RUN chown 1:2 /a
RUN rm -rf /a && touch /a
RUN rm /a && mkdir /a && touch /a/x
RUN touch -h -d '2020-01-01 00:00:00' /bin/sh; true
RUN touch /tmp/t && rm /tmp/t
RUN cp -a /etc /etc2
RUN mkdir /m && mkdir -m 0 /m/closed
