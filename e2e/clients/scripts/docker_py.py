"""Drives an engine (DOCKER_HOST) by docker-py. The engine has the image small."""
import io
import tarfile

import docker

c = docker.from_env()
assert c.ping()
assert c.containers.run("small", "echo hi", remove=True) == b"hi\n"
try:
    c.containers.run("small", ["sh", "-c", "echo why >&2; exit 3"], remove=True)
    raise AssertionError("no error")
except docker.errors.ContainerError as e:
    assert e.exit_status == 3 and b"why" in e.stderr, e
box = c.containers.run("small", "sleep 1000", detach=True, name="py", labels={"k": "v"}, ports={"80/tcp": None})
assert [x.id for x in c.containers.list(filters={"label": ["k=v"]})] == [box.id]
assert box.exec_run("sh -c 'echo in; exit 2'") == (2, b"in\n")
out = box.exec_run(["cat", "/etc/passwd"], demux=True).output
assert out[0].startswith(b"root:") and out[1] is None, out
buf = io.BytesIO()
with tarfile.open(fileobj=buf, mode="w") as t:
    info = tarfile.TarInfo("put")
    info.size = 3
    t.addfile(info, io.BytesIO(b"abc"))
assert box.put_archive("/tmp", buf.getvalue())
bits, stat = box.get_archive("/tmp/put")
assert stat["name"] == "put" and stat["size"] == 3, stat
with tarfile.open(fileobj=io.BytesIO(b"".join(bits))) as t:
    assert t.extractfile("put").read() == b"abc"
box.reload()
assert box.attrs["NetworkSettings"]["Ports"]["80/tcp"], box.attrs["NetworkSettings"]
assert box.stats(stream=False)["pids_stats"]["current"] >= 1
assert any(p[-1].startswith("sleep") for p in box.top()["Processes"]), box.top()
box.stop(timeout=0)
assert box.wait()["StatusCode"] in (137, 143)  # a sentry's process 1 may have ended by the SIGTERM before
assert box.logs() == b""
assert {"Path": "/tmp/put", "Kind": 1} in box.diff(), box.diff()
image = box.commit(repository="py", tag="1")
assert "py:1" in image.tags
box.remove()
built, log = c.images.build(fileobj=io.BytesIO(b"FROM small\nRUN echo built > /b\nCMD cat /b\n"), tag="py:2")
assert c.containers.run("py:2", remove=True) == b"built\n"
v = c.volumes.create("pyvol", labels={"a": "b"})
assert c.containers.run("small", "sh -c 'echo x > /v/f; ls /v'", volumes={"pyvol": {"bind": "/v", "mode": "rw"}}, remove=True) == b"f\n"
v.remove()
n = c.networks.create("pynet", driver="bridge")
assert c.containers.run("small", "hostname -i", network="pynet", remove=True).strip()
n.remove()
for tag in ["py:1", "py:2"]:
    c.images.remove(tag)
assert {"LayersSize", "Images", "Containers", "Volumes"} <= set(c.df()), c.df()
print("docker-py: all is well")
