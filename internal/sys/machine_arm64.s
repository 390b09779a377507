#include "textflag.h"

// func walk()
//
// The walker of a Plan; see machine_amd64.s. R19 is the current operation, R20
// the plan's header. Constants are built by MOVZ and MOVK, since a literal pool
// would stay behind when the code is copied.
TEXT ·walk(SB), NOSPLIT|NOFRAME, $0-0
	MOVZ $(0x51<<16), R20
	ADD  $64, R20, R19

next:
	MOVD 56(R19), R21
	MOVD 8(R19), R0
	MOVD 16(R19), R1
	MOVD 24(R19), R2
	MOVD 32(R19), R3
	MOVD 40(R19), R4
	MOVD 48(R19), R5
	CBZ  R21, call
	TBZ  $0, R21, a1
	MOVD (R0), R0

a1:
	TBZ  $1, R21, a2
	MOVD (R1), R1

a2:
	TBZ  $2, R21, a3
	MOVD (R2), R2

a3:
	TBZ  $3, R21, a4
	MOVD (R3), R3

a4:
	TBZ  $4, R21, a5
	MOVD (R4), R4

a5:
	TBZ  $5, R21, call
	MOVD (R5), R5

call:
	MOVD 0(R19), R8
	SVC
	MOVD 64(R19), R22
	CBZ  R22, branch
	MOVD R0, (R22)

branch:
	CMN  $4095, R0
	BHI  failed
	CBZ  R0, zero
	MOVD 88(R19), R19
	B    next

zero:
	MOVD 80(R19), R19
	B    next

failed:
	NEG  R0, R0
	MOVD R0, 0(R20)
	MOVD R19, 8(R20)
	MOVD 72(R19), R19
	B    next
	// machineEnd, looked for by the tests.
	WORD $0x216e6564
	WORD $0x216e6564

// func walkAddress() unsafe.Pointer
TEXT ·walkAddress(SB), NOSPLIT, $0-8
	MOVD $·walk(SB), R0
	MOVD R0, ret+0(FP)
	RET
