/* The store's protocol of publishing, leasing and collecting, as a model.
 *
 * docs/design/store.md describes the protocol, the code is internal/store. The
 * model has one object name X (path -> inode), NU users that take, use and name
 * it in records R[i] -> X, NG collectors, and kill -9 (the kernel drops the
 * locks) before every single step of every process. Checked in every state:
 *
 *   USE  a user that may use X holds the inode that X's path names, and that
 *        inode is not in the trash
 *   REC  a visible record never dangles
 *
 * and that nothing deadlocks. To run it (Debian: apt install spin gcc):
 *
 *   spin -a -DUR=2 -DGR=2 -DKILLS=1 store.pml
 *   cc -O2 -DSAFETY -DCOLLAPSE -w -o pan pan.c && ./pan -m200000 -w25
 *
 * "errors: 0" is a proof for these bounds. UR and GR are the rounds of each user
 * and collector, KILLS the kills. Each of these variants leaves out one step of
 * the protocol and must fail:
 *
 *   -DNORESCUE   a user does not remove the collector's flag
 *   -DLATERESCUE it does so only after it wrote its record
 *   -DNORECHECK  it does not compare path and inode once it has the lock
 *   -DMARKFIRST  the collector reads the records before it condemns
 *   -DNOCONDEMN  it does not condemn: it reads, then deletes what it can lock
 *   -DTWOGC      two collectors at once, and a flag that is just there
 *
 * while -DTWOGC -DTOKEN, two collectors with flags that carry the run's token,
 * must pass. The results are in store.md.
 */
#ifndef NU
#define NU 2
#endif
#ifndef UR
#define UR 2   /* rounds per user  */
#endif
#ifndef GR
#define GR 3   /* cycles per collector */
#endif
#ifdef TWOGC
#define NG 2
#else
#define NG 1
#endif
#ifdef NOCONDEMN
#define FLAGOK true
#elif defined(TOKEN)
#define FLAGOK (flag == seen)
#else
#define FLAGOK (flag != 0)
#endif
#ifndef KILLS
#define KILLS 2
#endif
#define NOI 255
#define MAXI 10
byte path = NOI;          /* directory entry objects/X -> inode        */
bool trashed[MAXI];       /* inode was moved to trash/                  */
byte sh[MAXI];            /* flock SH holders                           */
bool ex[MAXI];            /* flock EX held                              */
byte nexti = 0;
byte flag = 0;            /* condemned/X : 0 absent, else token      */
bool rec[NU];             /* records/Ri -> X visible                    */
byte uheld[NU];           /* inode+1 locked SH by user i (0 none)       */
bool using[NU];           /* user i believes it may use uheld-1         */
byte gheld[NG];           /* inode+1 locked EX by collector             */
byte tok = 1;
bool gclock = 0;
bool ukill[NU]; bool gkill[NG];

proctype User(byte me) {
  byte ino, r;
  r = 0;
  do
  :: r >= UR -> break
  :: r < UR ->
     r++;
     {
     skip;
acq: if
     :: atomic { path == NOI && nexti < MAXI ->         /* miss: unpack into tmp/, born SH-locked */
            ino = nexti; nexti++; sh[ino] = 1; uheld[me] = ino+1 }
        if                                             /* rename(NOREPLACE) */
        :: atomic { path == NOI -> path = ino }
        :: atomic { path != NOI -> sh[ino]--; uheld[me] = 0 }; goto acq
        fi
     :: atomic { path == NOI && nexti >= MAXI -> goto done }
     :: atomic { path != NOI -> ino = path };          /* open */
        atomic { !ex[ino] -> sh[ino]++; uheld[me] = ino+1 };  /* flock SH (blocking) */
#ifndef NORECHECK
        if
        :: path != ino -> atomic { sh[ino]--; uheld[me] = 0 }; goto acq
        :: path == ino
        fi
#endif
     fi;
#if !defined(NORESCUE) && !defined(LATERESCUE)
     flag = 0;                                          /* unlink condemned/X */
#endif
     using[me] = 1;
     if
     :: rec[me] = 1                                     /* publish record -> X */
     :: skip
     fi;
#ifdef LATERESCUE
     flag = 0;
#endif
     atomic { using[me] = 0; sh[ino]--; uheld[me] = 0 } /* close fd */
     } unless {
       atomic { ukill[me] -> ukill[me] = 0;             /* kill -9: kernel drops the lock */
         if :: uheld[me] != 0 -> sh[uheld[me]-1]--; :: else fi;
         uheld[me] = 0; using[me] = 0 }
     }
  od;
done: skip
}

proctype GC(byte me) {
  byte ino, c; bool got, m, cand; byte mytok, seen; byte i;
  c = 0;
  do
  :: c >= GR -> break
  :: c < GR ->
     c++;
     {
#ifndef TWOGC
     atomic { !gclock -> gclock = 1 };
#endif
     cand = 0; m = 0; got = 0; seen = 0;
     /* policy: evict any record at any time */
     if :: rec[0] = 0 :: rec[NU-1] = 0 :: skip fi;
#ifdef MARKFIRST
     i = 0; do :: i < NU -> m = m || rec[i]; i++ :: i >= NU -> break od;
#endif
#ifndef NOCONDEMN
     /* condemn: only if nobody uses it right now */
     atomic { ino = path };
     if
     :: ino == NOI
     :: ino != NOI ->
        atomic { if :: !ex[ino] && sh[ino] == 0 -> ex[ino] = 1; gheld[me] = ino+1; got = 1 :: else -> got = 0 fi };
        if
        :: got && path == ino ->
             atomic { mytok = tok; tok++; flag = mytok };
             seen = mytok; cand = 1
        :: else
        fi;
        if :: got -> atomic { ex[ino] = 0; gheld[me] = 0; got = 0 } :: else fi
     fi;
#else
     cand = 1;
#endif
#ifndef MARKFIRST
     i = 0; do :: i < NU -> m = m || rec[i]; i++ :: i >= NU -> break od;   /* mark, one record at a time */
#endif
     if
     :: cand && !m ->
        atomic { ino = path };
        if
        :: ino == NOI
        :: ino != NOI ->
           atomic { if :: !ex[ino] && sh[ino] == 0 -> ex[ino] = 1; gheld[me] = ino+1; got = 1 :: else -> got = 0 fi };
           if
           :: got && path == ino && FLAGOK ->
              atomic { path = NOI; trashed[ino] = 1 };  /* rename X -> trash/ */
                 flag = 0
           :: else
           fi;
           if :: got -> atomic { ex[ino] = 0; gheld[me] = 0; got = 0 } :: else fi
        fi
     :: else
     fi;
#ifndef TWOGC
     gclock = 0
#endif
     } unless {
       atomic { gkill[me] -> gkill[me] = 0;
         if :: gheld[me] != 0 -> ex[gheld[me]-1] = 0 :: else fi;
         gheld[me] = 0;
#ifndef TWOGC
         gclock = 0
#endif
       }
     }
  od
}

init { atomic {
  byte k = 0;
  do :: k < NU -> run User(k); k++ :: k >= NU -> break od;
  run GC(0); run Killer();
#ifdef TWOGC
  run GC(1);
#endif
} }

proctype Killer() {             /* kill -9 of any process before any of its steps */
  byte k = 0;
  do
  :: k < KILLS -> k++;
     if :: ukill[0] = 1 :: ukill[NU-1] = 1 :: gkill[0] = 1 :: gkill[NG-1] = 1 fi
  :: break
  od
}
/* a user that believes it may use X holds the inode that the path names, not trashed */
#define usesafe(i) (!using[i] || (uheld[i] != 0 && !trashed[uheld[i]-1] && path == uheld[i]-1))
/* a visible record never dangles */
#define recsafe(i) (!rec[i] || path != NOI)
active proctype Monitor() {
end: do
  :: atomic { !(usesafe(0) && usesafe(NU-1)) -> assert(false) }  /* USE */
  :: atomic { !(recsafe(0) && recsafe(NU-1)) -> assert(false) }  /* REC */
  od
}
