package dockerapi

// Engine is what the server needs of den's engine.
type Engine interface{}
