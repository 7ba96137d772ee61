// Package wiretest holds what package middleware sends against a parser that others wrote. It is a module
// of its own, so that the parser is no dependency of the root.
package wiretest
