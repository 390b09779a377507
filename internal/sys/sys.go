// Package sys wraps the Linux system calls that den needs and that the
// standard library does not offer, one file for each subject.
//
// Wrappers are thin: they retry on EINTR, turn strings into what the kernel
// wants and name the operation in the error, which unwraps to the errno. They
// take no decisions.
package sys
