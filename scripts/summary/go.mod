module den/summary

go 1.26
