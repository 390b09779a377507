/* The store's protocol for an object that needs another, as a model.
 *
 * store.pml has one object; here a layer T lies over a layer B (a manifest over
 * a blob is the same), and a record that names T keeps both. Two users take, use
 * and name T, one collector runs, and kill -9 comes before any step.
 *
 *   USE  a user that may use T holds the inodes that the paths of T and of B name
 *   REC  a visible record never names a T that is gone, or whose B is gone
 *
 * To run it: as store.pml. These variants leave out one rule and must fail:
 *
 *   -DTOPONLY   a user names T with a lease on T alone (rule I5)
 *   -DSHALLOW   the collector's reading stops at T and does not see that it needs B
 *   -DNOOVER    T is given its name by somebody without a lease on B
 *   -DONERESCUE a user removes T's flag and not B's
 */
#ifndef UR
#define UR 1 /* rounds per user */
#endif
#ifndef GR
#define GR 2 /* rounds of the collector */
#endif
#ifndef KILLS
#define KILLS 1
#endif
#define NU 2
#define NOI 255
#define MAXI 8
#define T 0
#define B 1

byte path[2];       /* name -> inode                      */
byte sh[MAXI];      /* shared locks on an inode           */
bool ex[MAXI];      /* an exclusive one                   */
bool trashed[MAXI];
byte nexti = 0;
bool flag[2];       /* condemned/X                        */
bool rec[NU];       /* record i names T                   */
byte held[4];       /* held[2*user+object]: inode+1       */
bool using[NU];
byte gheld = 0;     /* the collector's exclusive lock     */
bool ukill[NU];
bool gkill;

inline drop(x) {
	if
	:: held[2*me+x] != 0 -> sh[held[2*me+x]-1]--; held[2*me+x] = 0
	:: else
	fi
}

/* take: open, lock, compare, rescue. ok is false on a miss. */
inline take(x) {
	ok = false;
	do
	:: atomic { path[x] == NOI -> break }
	:: atomic { path[x] != NOI -> ino = path[x] };
	   atomic { !ex[ino] -> sh[ino]++; held[2*me+x] = ino+1 };
	   if
	   :: path[x] != ino -> atomic { drop(x) }
	   :: else ->
#ifdef ONERESCUE
	      if :: x == T -> flag[x] = 0 :: else fi;
#else
	      flag[x] = 0;
#endif
	      ok = true; break
	   fi
	od
}

/* make: a draft born locked, renamed to a name that is free. */
inline make(x) {
	atomic { nexti < MAXI -> ino = nexti; nexti++; sh[ino] = 1; held[2*me+x] = ino+1 };
	if
	:: atomic { path[x] == NOI -> path[x] = ino; ok = true };
	   flag[x] = 0
	:: atomic { path[x] != NOI -> drop(x); ok = false }
	fi
}

proctype User(byte me) {
	byte ino, r; bool ok;
	r = 0;
	do
	:: r >= UR -> break
	:: r < UR ->
	   r++;
	   {
	   skip;
again:	   if :: nexti >= MAXI-1 -> goto done :: else fi;
	   take(T);
	   if
	   :: ok ->
#ifndef TOPONLY
	      take(B);
	      if
	      :: ok
	      :: !ok -> /* T without its B is as good as not there: discard it */
		 atomic { ino = held[2*me+T]-1; drop(T) };
		 if
		 :: atomic { sh[ino] == 0 && !ex[ino] -> ex[ino] = 1 };
		    atomic { if :: path[T] == ino -> path[T] = NOI; trashed[ino] = 1 :: else fi; ex[ino] = 0 }
		 :: skip
		 fi;
		 goto again
	      fi
#endif
	   :: !ok ->
	      take(B);
	      do
	      :: ok -> break
	      :: !ok -> make(B); if :: ok -> break :: else -> take(B) fi
	      od;
#ifdef NOOVER
	      atomic { drop(B) };
#endif
	      make(T);
	      if :: ok :: !ok -> atomic { drop(T); drop(B) }; goto again fi
	   fi;
	   using[me] = 1;
	   if :: rec[me] = 1 :: skip fi;
	   atomic { using[me] = 0; drop(T); drop(B) }
	   } unless {
	     atomic { ukill[me] -> ukill[me] = 0; using[me] = 0; drop(T); drop(B) }
	   }
	od;
done:	atomic { using[me] = 0; drop(T); drop(B) }
}

inline tryex(x) {
	atomic {
		got = 0; ino = path[x];
		if
		:: ino != NOI && !ex[ino] && sh[ino] == 0 -> ex[ino] = 1; gheld = ino+1; got = 1
		:: else
		fi
	}
}

inline letgo() { atomic { if :: gheld != 0 -> ex[gheld-1] = 0; gheld = 0 :: else fi } }

inline condemn(x) {
	tryex(x);
	if :: got && path[x] == ino -> flag[x] = 1; cand[x] = 1 :: else fi;
	letgo()
}

inline sweep(x) {
	if
	:: cand[x] && !live[x] ->
	   tryex(x);
	   if
	   :: got && path[x] == ino && flag[x] -> atomic { path[x] = NOI; trashed[ino] = 1 }; flag[x] = 0
	   :: else
	   fi;
	   letgo()
	:: else
	fi
}

/* mark reads one record, and then what T needs. */
inline mark(i) {
	if
	:: rec[i] ->
	   live[T] = 1;
#ifndef SHALLOW
	   if :: path[T] != NOI -> live[B] = 1 :: else fi
#endif
	:: else
	fi
}

proctype GC() {
	byte ino, c; bool got; bool cand[2]; bool live[2];
	c = 0;
	do
	:: c >= GR -> break
	:: c < GR ->
	   c++;
	   {
	   atomic { cand[0] = 0; cand[1] = 0; live[0] = 0; live[1] = 0 };
	   if :: rec[0] = 0 :: rec[1] = 0 :: skip fi; /* evict */
	   condemn(B); condemn(T);
	   mark(0); mark(1);
	   sweep(B); sweep(T)
	   } unless {
	     atomic { gkill -> gkill = 0; letgo() }
	   }
	od
}

proctype Killer() {
	byte k = 0;
	do
	:: k < KILLS -> k++; if :: ukill[0] = 1 :: ukill[1] = 1 :: gkill = 1 fi
	:: break
	od
}

#define holds(i, x) (held[2*i+x] != 0 && !trashed[held[2*i+x]-1] && path[x] == held[2*i+x]-1)
#ifdef TOPONLY
#define usesafe(i) true
#else
#define usesafe(i) (!using[i] || (holds(i, T) && path[B] != NOI))
#endif
#define recsafe(i) (!rec[i] || (path[T] != NOI && path[B] != NOI))

active proctype Monitor() {
end:	do
	:: atomic { !(usesafe(0) && usesafe(1)) -> assert(false) } /* USE */
	:: atomic { !(recsafe(0) && recsafe(1)) -> assert(false) } /* REC */
	od
}

init {
	atomic {
		path[T] = NOI; path[B] = NOI;
		run User(0); run User(1); run GC(); run Killer()
	}
}
