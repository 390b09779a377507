#include "textflag.h"

// func walk()
//
// The walker of a Plan. It is never called: planImage copies its code into an
// ELF file of its own, where it is the entry point, so it must stay position
// independent, self-contained, and shorter than machineBytes. It lives on
// registers that system calls preserve:
//
//	BX  the current operation (see opWords in plan_image.go)
//	R14 the plan's header: errno and address of the last failed operation
TEXT ·walk(SB), NOSPLIT|NOFRAME, $0-0
	MOVQ $0x510000, R14
	LEAQ 64(R14), BX

next:
	MOVQ 56(BX), R12  // bit n: argument n is the address of its value
	MOVQ 8(BX), DI
	MOVQ 16(BX), SI
	MOVQ 24(BX), DX
	MOVQ 32(BX), R10
	MOVQ 40(BX), R8
	MOVQ 48(BX), R9
	TESTQ R12, R12
	JZ   call
	TESTQ $1, R12
	JZ   a1
	MOVQ (DI), DI

a1:
	TESTQ $2, R12
	JZ   a2
	MOVQ (SI), SI

a2:
	TESTQ $4, R12
	JZ   a3
	MOVQ (DX), DX

a3:
	TESTQ $8, R12
	JZ   a4
	MOVQ (R10), R10

a4:
	TESTQ $16, R12
	JZ   a5
	MOVQ (R8), R8

a5:
	TESTQ $32, R12
	JZ   call
	MOVQ (R9), R9

call:
	MOVQ 0(BX), AX
	SYSCALL
	MOVQ 64(BX), R13  // where the result goes
	TESTQ R13, R13
	JZ   branch
	MOVQ AX, (R13)

branch:
	CMPQ AX, $-4095
	JCC  failed
	TESTQ AX, AX
	JZ   zero
	MOVQ 88(BX), BX
	JMP  next

zero:
	MOVQ 80(BX), BX
	JMP  next

failed:
	NEGQ AX
	MOVQ AX, 0(R14)
	MOVQ BX, 8(R14)
	MOVQ 72(BX), BX
	JMP  next
	// machineEnd, looked for by the tests.
	BYTE $0x64; BYTE $0x65; BYTE $0x6e; BYTE $0x21
	BYTE $0x64; BYTE $0x65; BYTE $0x6e; BYTE $0x21

// func walkAddress() unsafe.Pointer
TEXT ·walkAddress(SB), NOSPLIT, $0-8
	LEAQ ·walk(SB), AX
	MOVQ AX, ret+0(FP)
	RET
