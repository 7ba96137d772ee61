package middleware

import (
	"io"
	"unsafe"
)

// RecorderSize is what each request allocates for the layers.
const RecorderSize = unsafe.Sizeof(recorder{})

// BufferedRoom is how much room BufferBody makes for the first n bytes of a body.
func BufferedRoom(body io.ReadCloser, n int, length int64) int {
	b := &buffered{ReadCloser: body}
	b.fill(n, length)
	return cap(b.read)
}

// Patience is how long a write waits for the client before the permit is given back, or the slot, and SlowPlaces how many requests may be without a
// permit so.
const Patience, SlotPatience, SlowPlaces = patience, slotPatience, slowPlaces

// BodyPatience is how long a Read waits for the body before others have the permit, and BodySlow the same from the second time on.
const BodyPatience, BodySlow = bodyPatience, bodySlow
