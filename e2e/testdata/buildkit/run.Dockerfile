FROM @small
RUN mkdir -p /srv/app/deep && echo content > /srv/app/file && ln /srv/app/file /srv/app/deep/hard && ln -s ../file /srv/app/deep/soft && ln -s /nowhere /srv/app/dangling \
 && mkfifo /srv/app/fifo && dd if=/dev/zero of=/srv/app/sparse bs=1 count=1 seek=1M 2>/dev/null \
 && touch /srv/app/version && chown 33:44 /srv/app/version && chown -h 33:44 /srv/app/dangling && chmod 4750 /srv/app/version && chmod 1777 /srv/app/deep && touch -d '2020-02-02 02:02:02' /srv/app/deep/old \
 && toolbox setcap /srv/app/file && touch '/srv/app/sp ace' /srv/app/ünïcode && touch /srv/app/far && chown 60000:60001 /srv/app/far
RUN rm /bin/vi && rm -rf /home/app && mkdir /home/app && touch /home/app/new && mv /var /moved && rmdir /usr/bin && touch /usr/bin && chmod 700 /root && rm /srv/app/deep/soft
RUN true
RUN touch -d '2021-01-01 00:00:00' /etc/passwd
RUN chmod 0755 /root && rm -rf /home && ln -s bin /home
