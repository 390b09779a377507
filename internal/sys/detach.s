// An assembly file lets this package declare functions without a body, which
// go:linkname needs.
