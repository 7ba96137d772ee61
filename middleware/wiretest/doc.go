// Package wiretest holds what package middleware sends against a parser that others wrote, and has the layers serve HTTP/3 by a
// server that others wrote. It is a module of its own, so that neither is a dependency of the root.
package wiretest
