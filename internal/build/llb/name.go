package llb

import (
	"fmt"
	"strings"

	"github.com/moby/buildkit/solver/pb"

	"den/internal/oci"
)

// customName is the description under which frontends put the text they want
// to be shown.
const customName = "llb.customname"

// name returns what BuildKit's llbsolver shows for a vertex.
func name(v *Vertex) string {
	if s, ok := v.Meta.Description[customName]; ok {
		return s
	}
	switch op := v.Op.Op.(type) {
	case *pb.Op_Source:
		return op.Source.Identifier
	case *pb.Op_Exec:
		return strings.Join(op.Exec.Meta.Args, " ")
	case *pb.Op_File:
		return fileName(op.File.Actions)
	case *pb.Op_Merge:
		names := make([]string, len(v.Inputs))
		for i, in := range v.Inputs {
			names[i] = in.Vertex.Name
		}
		return short("merge (" + strings.Join(names, ", ") + ")")
	}
	return "unknown"
}

func fileName(actions []*pb.FileAction) string {
	names := make([]string, 0, len(actions))
	for _, action := range actions {
		switch a := action.Action.(type) {
		case *pb.FileAction_Mkdir:
			names = append(names, "mkdir "+a.Mkdir.Path)
		case *pb.FileAction_Mkfile:
			names = append(names, "mkfile "+a.Mkfile.Path)
		case *pb.FileAction_Symlink:
			names = append(names, "symlink "+a.Symlink.Newpath+" -> "+a.Symlink.Oldpath)
		case *pb.FileAction_Rm:
			names = append(names, "rm "+a.Rm.Path)
		case *pb.FileAction_Copy:
			names = append(names, "copy "+a.Copy.Src+" "+a.Copy.Dest)
		}
	}
	return strings.Join(names, ", ")
}

// short bounds a name made of other names: merges of merges would double it
// at each level.
func short(s string) string {
	const most = 4096
	if len(s) <= most {
		return s
	}
	return s[:most-3] + "..."
}

// title names a vertex in an error: by its name if it has one, and by digest.
func title(dgst oci.Digest, md *pb.OpMetadata) string {
	if s := md.GetDescription()[customName]; s != "" {
		return fmt.Sprintf("%.200q (%s)", s, dgst)
	}
	return dgst.String()
}
