module den/bench

go 1.26
