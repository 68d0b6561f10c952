package httpedge

var openAPI = []byte("{}")
