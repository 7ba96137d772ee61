package middleware

import "unsafe"

// RecorderSize is what each request allocates for the layers.
const RecorderSize = unsafe.Sizeof(recorder{})
