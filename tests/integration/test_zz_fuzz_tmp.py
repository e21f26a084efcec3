import asyncio, sys
async def test_fuzz(platform, make_brand, pictures):
    brand = await make_brand("fuzz")
    await platform.train(brand, pictures(1))
    p = await asyncio.create_subprocess_exec(sys.executable.replace("python","st") if False else "/work/main/.venv/bin/st", "run", platform.url+"/openapi.json",
        "-H", f"Authorization: Bearer {platform.token(brand.admin)}", "-n", "25", "-c", "not_a_server_error", "--phases", "examples,coverage,fuzzing", "--exclude-path-regex", "events|v1/tokens|v1/users$", "--request-timeout", "20", "--max-failures","40",
        stdout=open("/tmp/fz/out","w"), stderr=asyncio.subprocess.STDOUT)
    try:
        await asyncio.wait_for(p.wait(), 240)
    except asyncio.TimeoutError:
        p.kill(); await p.wait()
