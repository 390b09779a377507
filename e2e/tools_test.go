package e2e

func ptyMain(string) int { return 2 }
