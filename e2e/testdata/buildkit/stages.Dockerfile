FROM @small AS base
RUN echo base > /base
FROM base AS unused
RUN exit 1
FROM base AS Wanted
ARG A
LABEL stage=wanted
RUN echo wanted$A > /wanted
COPY --from=base /base /b2
COPY --from=named a /from-named
FROM wanted
RUN exit 2
#flags --target=wanted --build-arg=A=1 --label=x=y --label=stage=flag --build-context=named=@ctx/named
