// Drives an engine (DOCKER_HOST) by dockerode and by Testcontainers for Node.
// The engine has the images small and testcontainers/ryuk:0.11.0.
const assert = require("assert");
const Docker = require("dockerode");
const { GenericContainer, Network, Wait } = require("testcontainers");

async function text(stream) {
  let s = "";
  for await (const b of stream) s += b;
  return s;
}

async function dockerode() {
  const docker = new Docker({ socketPath: process.env.DOCKER_HOST.replace("unix://", "") });
  assert.strictEqual((await docker.ping()).toString(), "OK");
  const c = await docker.createContainer({ Image: "small", Cmd: ["sh", "-c", "echo out; cat; echo err >&2; exit 5"], OpenStdin: true, StdinOnce: true, AttachStdin: true, AttachStdout: true, AttachStderr: true, name: "node" });
  const stream = await c.attach({ stream: true, stdin: true, stdout: true, stderr: true, hijack: true });
  const { PassThrough } = require("stream");
  const out = new PassThrough(), err = new PassThrough();
  docker.modem.demuxStream(stream, out, err);
  stream.on("end", () => { out.end(); err.end(); });
  await c.start();
  stream.end("typed\n");
  assert.deepStrictEqual([await text(out), await text(err)], ["out\ntyped\n", "err\n"]);
  assert.strictEqual((await c.wait()).StatusCode, 5);
  assert.strictEqual((await c.inspect()).State.ExitCode, 5);
  await c.remove();
  // dockerode asks how it ended after the start, when a container that removes itself may be gone.
  const [data] = await docker.run("small", ["sh", "-c", "echo run; exit 3"], process.stdout, { HostConfig: { AutoRemove: true } });
  assert.strictEqual(data.StatusCode, 3);
}

async function testcontainers() {
  const network = await new Network().start();
  const web = await new GenericContainer("small")
    .withCopyContentToContainer([{ content: "paged", target: "/etc/page" }])
    .withCommand(["sh", "-c", "mkdir -p /w; cp /etc/page /w/index.html; echo ready; exec httpd -f -p 80 -h /w"])
    .withNetwork(network).withNetworkAliases("web").withExposedPorts(80)
    .withWaitStrategy(Wait.forAll([Wait.forLogMessage("ready"), Wait.forListeningPorts()])).start();
  const res = await fetch(`http://${web.getHost()}:${web.getMappedPort(80)}/`);
  assert.strictEqual(await res.text(), "paged");
  const { output, exitCode } = await web.exec(["sh", "-c", "echo in; exit 3"]);
  assert.deepStrictEqual([output, exitCode], ["in\n", 3]);
  const other = await new GenericContainer("small").withNetwork(network).withCommand(["wget", "-q", "-O", "-", "http://web/"]).withWaitStrategy(Wait.forOneShotStartup()).start();
  assert.match(await text(await other.logs()), /paged/);
  await other.stop();
  await web.stop();
  await network.stop();
}

dockerode().then(testcontainers).then(() => { console.log("node: all is well"); process.exit(0); }, (e) => { console.error(e); process.exit(1); });
