-- Schemas, signed claims, the helpers of the row policies, the wall, users, brands and members.
-- The roles exist already: onbrand.db.logins makes them, since they belong to the server and not to one database.

revoke all on schema public from public;
create schema app authorization onbrand_owner;
create schema private authorization onbrand_owner;
create schema storage authorization onbrand_owner;
create schema audit authorization onbrand_owner;
create schema identity authorization onbrand_identity;
grant usage on schema app, storage, private to authenticated, brand_system, onbrand_definer;
grant usage on schema private to anon, onbrand_dispatcher, onbrand_identity, onbrand_operator;
grant usage on schema app to onbrand_identity, onbrand_operator;
grant usage on schema audit to authenticated, onbrand_definer, onbrand_operator;
grant create on schema private to onbrand_definer, onbrand_identity;

-- A function is nobody's to call until it is granted, later ones included.
alter default privileges for role onbrand_owner revoke execute on functions from public;
alter default privileges for role onbrand_definer revoke execute on functions from public;
alter default privileges for role onbrand_identity revoke execute on functions from public;

set role onbrand_owner;

create table app.brands (
  id text primary key check (id ~ '^[a-z0-9][a-z0-9-]{1,62}$' and id !~ '^(us|eu|ap|sa|ca|me|af|il)-'),
  name text not null check (char_length(name) between 1 and 200),
  home_region text not null default 'us-east-1' check (home_region ~ '^[a-z0-9-]{2,32}$'),
  user_id uuid not null,
  created_at timestamptz not null default clock_timestamp()
);

create table app.brand_users (
  brand_id text not null references app.brands,
  user_id uuid not null,
  role text not null check (role in ('member', 'admin')),
  created_at timestamptz not null default clock_timestamp(),
  primary key (brand_id, user_id)
);
-- The brands of a user, for our own functions. An index on user_id itself could be searched by anyone who may run SQL;
-- a search by an expression that is not leakproof never goes before the wall.
create index brand_users_by_user on app.brand_users (uuid_send(user_id), brand_id);

create table audit.events (
  seq bigint not null,
  brand_id text not null,
  at timestamptz not null,
  actor text not null,
  action text not null,
  detail jsonb not null,
  prev bytea,
  hash bytea not null,
  primary key (brand_id, seq)
);

-- Numbers in names (logo-001, flux-lora-v2, 2024-12-04-002): taken here, never given twice, not even after a deletion.
create table app.numbers (
  brand_id text not null references app.brands,
  series text not null check (series ~ '^[a-z0-9:.-]{1,80}$'),
  last bigint not null check (last > 0),
  primary key (brand_id, series)
);

reset role;

-- The owner of the helpers may read memberships and little else: by these grants, and by a policy of its own on each table.
grant select on app.brand_users to onbrand_definer;
grant insert on app.brand_users to onbrand_definer;
grant select, insert on audit.events to onbrand_definer;
grant select, insert, update on app.numbers to onbrand_definer;
grant select on app.brands to onbrand_definer, onbrand_operator;
grant select on audit.events to onbrand_operator;

set role onbrand_definer;

-- The keys that sign claims: the newest two, so that one can replace the other while both are in use. Kept as the two
-- padded blocks of HMAC (RFC 2104), which saves their computation at every check.
create table private.claim_keys (
  id text primary key check (id ~ '^[0-9a-f]{16}$'),
  inner_pad bytea not null check (octet_length(inner_pad) = 64),
  outer_pad bytea not null check (octet_length(outer_pad) = 64),
  created_at timestamptz not null default clock_timestamp()
);
alter table private.claim_keys enable row level security;
alter table private.claim_keys force row level security;
create policy own_code on private.claim_keys to onbrand_definer using (true) with check (true);

-- The claims of this transaction come in two settings that are signed together (HMAC-SHA256): `request.jwt.claims`, JSON,
-- and `request.scope`, which is what the wall asks at every table, in the order of private.my_role. Whoever holds a login can
-- set any claims, and signs none. They name the server process and the begin of the transaction, so those of another
-- transaction are worth nothing here: neither stolen ones, nor one's own of another brand, mixed with these.
create function private.stamp() returns text
language sql stable
return pg_backend_pid()::text || ' ' || extract(epoch from transaction_timestamp())::text;

create function private.is_signed(scope text, said text) returns boolean
language plpgsql stable security definer set search_path = '' as $$
declare
  part text[] := string_to_array(scope, '|');
  signed text;
begin
  select encode(sha256(k.outer_pad || sha256(k.inner_pad || convert_to(scope || chr(10) || said, 'UTF8'))), 'hex')
    into signed from private.claim_keys k where k.id = part[1];
  return coalesce(signed = current_setting('request.claims_signature', true)
    and part[3] = current_setting('role', true) and part[2] = private.stamp(), false);
end $$;

-- The claims, if they are signed, for this role and this transaction; else null.
create function private.claims() returns jsonb
language plpgsql stable security definer set search_path = '' as $$
declare said text := nullif(current_setting('request.jwt.claims', true), '');
begin
  if said is null or not private.is_signed(current_setting('request.scope', true), said) then return null; end if;
  return said::jsonb;
end $$;

-- For functions that act for the platform itself.
create function private.must_be_signed() returns void
language plpgsql stable security definer set search_path = '' as $$
begin
  if private.claims() is null then
    raise exception 'the platform did not sign these claims' using errcode = '42501';
  end if;
end $$;

create function private.uid() returns uuid
language sql stable
return (private.claims() ->> 'sub')::uuid;

create function private.ctx(k text) returns text
language sql stable
return private.claims() ->> k;

-- Whether a key and a session are valid at a time: the clock's, since a statement may run as long as its sender likes. The
-- planner writes these bodies into what asks.
create function private.key_stands(revoked_at timestamptz, expires_at timestamptz, at timestamptz) returns boolean
language sql immutable
return revoked_at is null and coalesce(expires_at, 'infinity') > at;

create function private.session_stands(ended_at timestamptz, expires_at timestamptz, last_seen_at timestamptz,
  idle interval, at timestamptz) returns boolean
language sql stable
return ended_at is null and least(expires_at, last_seen_at + idle) > at;

-- Whether the platform asked for just this call: what a function makes of its arguments is not for whoever may call it.
create function private.must_be_asked(variadic wanted text[]) returns void
language plpgsql stable security definer set search_path = '' as $$
begin
  if private.claims() -> 'asks' is distinct from to_jsonb(wanted) then
    raise exception 'the platform did not ask for this' using errcode = '42501';
  end if;
end $$;

-- Neither a key nor a token of some scopes only: the user may do all that their role allows.
create function private.is_unlimited() returns boolean
language sql stable
return not coalesce(private.claims() ?| array['key_id', 'scopes'], true);

-- The role in the one brand of this transaction, looked up live: of the user, or of the member on whose behalf a ticket was
-- given. Null for no member, for claims that nobody signed or that are for another role or transaction, for a credential that
-- has ended or is bound to another brand, and for a key that is not used for one of its scopes. This is what the wall costs,
-- at every table of every statement: few queries without joins, and no calls.
create function private.my_role() returns text
language plpgsql stable security definer set search_path = '' as $$
declare
  scope text := current_setting('request.scope', true);
  part text[] := string_to_array(scope, '|');
  key_id text := part[1]; stamp text := part[2]; role_used text := part[3];
  brand text := part[4]; who uuid := nullif(part[5], ''); bound_to text := part[6];
  credential text := part[7]; credential_id uuid := nullif(part[8], ''); purpose text := part[9]; narrowed text := part[10];
  inner_pad bytea; outer_pad bytea; scopes text[]; found_role text;
begin
  if brand = '' or (bound_to <> '' and bound_to <> brand) then return null; end if;
  select k.inner_pad, k.outer_pad into inner_pad, outer_pad from private.claim_keys k where k.id = key_id;
  if encode(sha256(outer_pad || sha256(inner_pad || convert_to(
      scope || chr(10) || current_setting('request.jwt.claims', true), 'UTF8'))), 'hex')
    is distinct from current_setting('request.claims_signature', true) then return null; end if;
  if role_used <> current_setting('role', true)
     or stamp <> pg_backend_pid()::text || ' ' || extract(epoch from transaction_timestamp())::text then return null; end if;
  if credential = 'key' then
    select k.scopes into scopes from app.api_keys k
      where k.brand_id = brand and k.id = credential_id and k.user_id = who
        and private.key_stands(k.revoked_at, k.expires_at, clock_timestamp());
    if not coalesce(purpose = any (scopes), false)
       or (narrowed <> '' and not purpose = any (string_to_array(narrowed, ','))) then return null; end if;
  elsif credential = 'session' then
    perform 1 from identity.sessions s
      where s.id = credential_id and s.user_id = who
        and private.session_stands(s.ended_at, s.expires_at, s.last_seen_at, s.idle, clock_timestamp());
    if not found then return null; end if;
  elsif credential <> '' then
    return null;
  end if;
  select bu.role into found_role from app.brand_users bu where bu.brand_id = brand and bu.user_id = who;
  return found_role;
end $$;

-- The brand that the claims name, verified or not.
create function private.claimed() returns text
language sql stable
return split_part(current_setting('request.scope', true), '|', 4);

-- The one brand of this transaction, if the user is a member. Null shows nothing.
create function private.my_brand() returns text
language sql stable
return case when private.my_role() is not null then private.claimed() end;

-- The brand of this transaction's ticket; null once the member on whose behalf it was given is a member no more.
create function private.ticket_brand() returns text
language sql stable
return case when private.my_role() is not null then private.claimed() end;

-- May this credential do such a thing at all? A key may what its row says, and its claims may only narrow that.
create function private.may(what text) returns boolean
language plpgsql stable security definer set search_path = '' as $$
declare c jsonb := private.claims();
begin
  if c is null then return false; end if;
  if not c ?| array['key_id', 'session_id', 'scopes'] then return true; end if;  -- the user themselves, by a token
  if c ->> 'scopes' is not null and not c -> 'scopes' ? may.what then return false; end if;
  if c ? 'session_id' then
    return exists (select 1 from identity.sessions s
      where s.id = (c ->> 'session_id')::uuid and s.user_id = (c ->> 'sub')::uuid and not c ? 'key_id'
        and private.session_stands(s.ended_at, s.expires_at, s.last_seen_at, s.idle, clock_timestamp()));
  end if;
  if c ? 'key_id' then
    return exists (select 1 from app.api_keys k
      where k.brand_id = c ->> 'brand_id' and k.id = (c ->> 'key_id')::uuid and k.user_id = (c ->> 'sub')::uuid
        and private.key_stands(k.revoked_at, k.expires_at, clock_timestamp()) and may.what = any (k.scopes));
  end if;
  return true;
end $$;

-- Is the user an admin of the one brand of this transaction, with a credential that may manage?
create function private.is_admin() returns boolean
language sql stable
return coalesce(private.my_role() = 'admin'
  and (split_part(current_setting('request.scope', true), '|', 7) <> 'key' or private.may('manage')), false);

-- The claimed brand as the one field of an object: see app.wall_reads.
create function private.claimed_brand() returns jsonb
language sql stable
return jsonb_build_object(coalesce(private.claimed(), ''), true);

-- The brands that the credential reaches by id, n at most (null: all), after this one. The claims of such a transaction name
-- no brand, or the one that the credential is bound to.
create function private.my_brands(after text, n integer)
returns table (id text, name text, home_region text, role text, created_at timestamptz)
language plpgsql stable security definer set search_path = '' as $$
declare
  c jsonb := private.claims();
  bound_to text := c ->> 'bound_to';
begin
  if c is null or (bound_to is null and not private.credential_lives())
     or (bound_to is not null and private.my_role() is null) then return; end if;
  return query
    select b.id, b.name, b.home_region, bu.role, b.created_at
    from app.brand_users bu join app.brands b on b.id = bu.brand_id
    where uuid_send(bu.user_id) = uuid_send((c ->> 'sub')::uuid) and bu.brand_id > coalesce(my_brands.after, '')
      and (bound_to is null or bu.brand_id = bound_to)
    order by bu.brand_id limit my_brands.n;
end $$;

-- May the caller act in brand b at all? As a member, or with a ticket of that brand.
create function private.acts_in(b text) returns boolean
language sql stable security definer set search_path = '' as $$
  select case current_setting('role', true)
    when 'authenticated' then b = private.my_brand()
    when 'brand_system' then b = private.ticket_brand()
    else false end
$$;

-- Advisory locks by a key that nobody can compute or match without the seed: locks have no row security, anybody may take
-- one and see all that are held.
create table private.lock_seed (one boolean primary key default true check (one), seed bigint not null);
alter table private.lock_seed enable row level security;
alter table private.lock_seed force row level security;
create policy own_code on private.lock_seed to onbrand_definer using (true) with check (true);
insert into private.lock_seed (seed) values (
  ('x' || left(replace(gen_random_uuid()::text, '-', ''), 12))::bit(48)::bigint);

create function private.lock_key(what text, whose text) returns bigint
language sql stable security definer set search_path = '' as $$
  select pg_catalog.hashtextextended(what || ':' || whose, s.seed) from private.lock_seed s
$$;

-- Hold one of the services' locks of one's own brand to the end of the transaction; for strangers, nothing.
create function private.hold(what text, b text) returns void
language plpgsql volatile security definer set search_path = '' as $$
begin
  if what not in ('admission', 'training', 'members', 'metadata', 'uploads') then
    raise exception 'no such lock' using errcode = '22023';
  end if;
  if coalesce(private.acts_in(b), false) then
    perform pg_catalog.pg_advisory_xact_lock(private.lock_key(what, b));
  end if;
end $$;

-- The first of n fresh numbers of a series of a brand.
create function private.next_number(b text, what text, n integer) returns bigint
language plpgsql volatile security definer set search_path = '' as $$
declare taken bigint;
begin
  if not coalesce(private.acts_in(b), false) or n not between 1 and 500 then
    raise exception 'no numbers of this brand' using errcode = '42501';
  end if;
  insert into app.numbers as c (brand_id, series, last) values (b, what, n)
  on conflict (brand_id, series) do update set last = c.last + excluded.last
  returning c.last into taken;
  return taken - n + 1;
end $$;

create function private.audit_append(b text, act text, what text, d jsonb) returns void
language plpgsql volatile security definer set search_path = '' as $$
declare p bytea; s bigint; t timestamptz := clock_timestamp();
begin
  perform pg_catalog.pg_advisory_xact_lock(private.lock_key('audit', b));
  select e.hash, e.seq into p, s from audit.events e where e.brand_id = b order by e.seq desc limit 1;
  s := coalesce(s, 0) + 1;
  insert into audit.events values (s, b, t, act, what, d, p, sha256(convert_to(concat_ws('|',
    s::text, b, extract(epoch from t)::text, act, what, d::text, encode(coalesce(p, ''::bytea), 'hex')), 'utf8')));
end $$;

-- Write one line into the brand's chained record; the actor is who the session is, not what it says.
create function private.record(b text, what text, d jsonb) returns void
language plpgsql volatile security definer set search_path = '' as $$
begin
  if not coalesce(private.acts_in(b), false) then
    raise exception 'no record of this brand' using errcode = '42501';
  end if;
  perform private.audit_append(b, coalesce(private.uid()::text, 'system:' || private.ctx('job_id')), what, d);
end $$;

-- Who makes a brand is its first admin.
create function private.tg_found_brand() returns trigger
language plpgsql volatile security definer set search_path = '' as $$
begin
  insert into app.brand_users (brand_id, user_id, role) values (new.id, new.user_id, 'admin');
  return null;
end $$;

-- The last admin never goes away. The lock makes two admins who drop each other wait in turn.
create function private.tg_keep_an_admin() returns trigger
language plpgsql volatile security definer set search_path = '' as $$
begin
  if old.role <> 'admin' then return null; end if;
  perform pg_catalog.pg_advisory_xact_lock(private.lock_key('members', old.brand_id));
  if not exists (select 1 from app.brand_users bu where bu.brand_id = old.brand_id and bu.role = 'admin') then
    raise exception 'a brand keeps at least one admin' using errcode = 'OB001';
  end if;
  return null;
end $$;

reset role;

grant execute on function private.claims(), private.must_be_signed(), private.must_be_asked(text[])
  to anon, authenticated, brand_system, onbrand_dispatcher, onbrand_owner, onbrand_identity;
grant execute on function private.uid(), private.ctx(text), private.my_role(), private.claimed(), private.my_brand(),
  private.is_admin(), private.may(text) to authenticated, brand_system, onbrand_owner, onbrand_identity;
grant execute on function private.ticket_brand() to brand_system, onbrand_owner;
grant execute on function private.claimed_brand() to authenticated, brand_system, onbrand_owner;
grant execute on function private.is_unlimited() to authenticated, onbrand_owner;
grant execute on function private.my_brands(text, integer) to authenticated;
grant execute on function private.next_number(text, text, integer), private.record(text, text, jsonb),
  private.hold(text, text)
  to authenticated, brand_system;
grant execute on function private.audit_append(text, text, text, jsonb) to onbrand_operator;
grant execute on function private.tg_found_brand(), private.tg_keep_an_admin() to onbrand_owner;

-- Users: behind their own owner, reached only through functions.
set role onbrand_identity;

create table identity.users (
  id uuid primary key default gen_random_uuid(),
  email text not null unique check (email = lower(email) and char_length(email) between 3 and 254),
  password_hash text not null,
  created_at timestamptz not null default clock_timestamp()
);
alter table identity.users enable row level security;
alter table identity.users force row level security;
create policy own_code on identity.users to onbrand_identity using (true) with check (true);

-- What nobody has logged in for yet is asked by the platform only: its claims are signed, too.
create function private.sign_up(email text, password_hash text) returns table (id uuid, created_at timestamptz)
language plpgsql volatile security definer set search_path = '' as $$
begin
  perform private.must_be_asked('sign_up', lower(sign_up.email));
  return query insert into identity.users as u (email, password_hash)
    values (lower(sign_up.email), sign_up.password_hash) returning u.id, u.created_at;
end $$;

-- The hash of a password is shown for the one address that the platform asks for: a login alone reads none.
create function private.find_login(email text) returns table (id uuid, password_hash text)
language plpgsql stable security definer set search_path = '' as $$
begin
  perform private.must_be_asked('find_login', lower(find_login.email));
  return query select u.id, u.password_hash from identity.users u where u.email = lower(find_login.email);
end $$;

create function private.me() returns table (id uuid, email text, created_at timestamptz)
language sql stable security definer set search_path = '' as $$
  select u.id, u.email, u.created_at from identity.users u where u.id = private.uid()
$$;

-- Only an admin of the brand may ask who has an address, to make them a member.
create function private.find_user(b text, email text) returns uuid
language sql stable security definer set search_path = '' as $$
  select u.id from identity.users u
  where u.email = lower(find_user.email) and b = private.my_brand() and private.is_admin()
$$;

-- Addresses of the members whom the caller may see: oneself; for an admin, the brand's.
create function private.member_emails(b text) returns table (user_id uuid, email text)
language sql stable security definer set search_path = '' as $$
  select u.id, u.email from identity.users u join app.brand_users bu on bu.user_id = u.id where bu.brand_id = b
$$;

reset role;
grant execute on function private.sign_up(text, text), private.find_login(text) to anon;
grant execute on function private.me(), private.find_user(text, text), private.member_emails(text) to authenticated;

set role onbrand_owner;

create trigger found_brand after insert on app.brands for each row execute function private.tg_found_brand();
create trigger keep_an_admin after update or delete on app.brand_users
  for each row execute function private.tg_keep_an_admin();

create function app.tg_brand_immutable() returns trigger
language plpgsql set search_path = '' as $$
begin
  if new.brand_id is distinct from old.brand_id then
    raise exception 'brand_id is immutable' using errcode = '42501';
  end if;
  return new;
end $$;

-- The two forms of the wall, for a column that holds the brand and the function that says the one brand of this
-- transaction. The first decides which rows are read, the second which are written.
--
-- Who may run SQL must not learn of rows behind the wall whether a condition holds for them: not by what EXPLAIN counts
-- as executed, not by statistics, not by time. So, for each row, the wall is evaluated before every condition of theirs:
--   1. `(column, true) = (select brand, brand is not null ...)` becomes two conditions on one subquery. The second is a
--      bare parameter, which costs nothing and is sorted first: the subquery runs at the first row, whatever its content.
--   2. `(select claimed_brand())[column] is not null` costs nothing, either (a jsonb subscript; any comparison would have
--      the cost of theirs). The claimed brand is the true one by then, for 1 says so.
--   3. `column = brand` itself finds the rows: every index begins with the brand, so that no search meets other rows.
-- The planner keeps no statistics of the columns, for EXPLAIN would tell them: see docs/decisions/0170.
create function app.wall_reads(col text, says text) returns text
language sql immutable set search_path = '' as $$
  select format('(%1$I, true) = (select s.brand, s.brand is not null from (select %2$s offset 0) as s (brand)) '
    'and ((select private.claimed_brand()))[%1$I] is not null', col, says)
$$;

create procedure app.keep_no_statistics(t regclass)
language plpgsql set search_path = '' as $$
declare col name;
begin
  for col in select a.attname from pg_catalog.pg_attribute a
    where a.attrelid = t and a.attnum > 0 and not a.attisdropped
  loop
    execute format('alter table %s alter column %I set statistics 0', t, col);
  end loop;
end $$;

-- The wall: forced row security, one restrictive policy per family of roles, and a brand_id that never changes.
-- Every later migration calls this for each new table that has brand_id, after its last column was added.
create procedure app.build_wall(t regclass)
language plpgsql set search_path = '' as $$
begin
  execute format('alter table %s enable row level security', t);
  execute format('alter table %s force row level security', t);
  execute format('create policy wall_user on %s as restrictive for all to authenticated '
    'using (%s) with check (brand_id = (select private.my_brand()))', t,
    app.wall_reads('brand_id', 'private.my_brand()'));
  execute format('create policy wall_system on %s as restrictive for all to brand_system '
    'using (%s) with check (brand_id = (select private.ticket_brand()))', t,
    app.wall_reads('brand_id', 'private.ticket_brand()'));
  execute format('create policy own_code on %s to onbrand_definer using (true) with check (true)', t);
  execute format('create trigger brand_immutable before update on %s '
    'for each row execute function app.tg_brand_immutable()', t);
  call app.keep_no_statistics(t);
end $$;
revoke execute on procedure app.build_wall(regclass), app.keep_no_statistics(regclass) from public;

alter table app.brands enable row level security;
alter table app.brands force row level security;
do $$ begin
  execute format('create policy wall_user on app.brands as restrictive for select to authenticated using (%s)',
    app.wall_reads('id', 'private.my_brand()'));
  execute format('create policy wall_system on app.brands as restrictive for all to brand_system using (%s)',
    app.wall_reads('id', 'private.ticket_brand()'));
end $$;
create policy own_code on app.brands to onbrand_definer, onbrand_operator using (true);
create policy member_select on app.brands for select to authenticated using (true);
create policy member_insert on app.brands for insert to authenticated
  with check (user_id = (select private.uid()) and (select private.ctx('bound_to')) is null);
create policy system_select on app.brands for select to brand_system using (true);
grant select on app.brands to authenticated, brand_system;
grant insert (id, name, home_region, user_id) on app.brands to authenticated;
call app.keep_no_statistics('app.brands');

call app.build_wall('app.brand_users');
create policy member_select on app.brand_users for select to authenticated
  using (user_id = (select private.uid()) or (select private.is_admin()));
create policy admin_insert on app.brand_users for insert to authenticated
  with check ((select private.is_admin()));
create policy admin_update on app.brand_users for update to authenticated
  using ((select private.is_admin())) with check ((select private.is_admin()));
create policy admin_delete on app.brand_users for delete to authenticated
  using ((select private.is_admin()));
create policy identity_select on app.brand_users for select to onbrand_identity
  using (brand_id = (select private.my_brand()) and (user_id = (select private.uid()) or (select private.is_admin())));
grant select, delete on app.brand_users to authenticated;
grant insert (brand_id, user_id, role) on app.brand_users to authenticated;
grant update (role) on app.brand_users to authenticated;
grant select on app.brand_users to onbrand_identity;
alter index app.brand_users_by_user alter column 1 set statistics 0;

call app.build_wall('app.numbers');

call app.build_wall('audit.events');
create policy admin_select on audit.events for select to authenticated using ((select private.is_admin()));
create policy operator_select on audit.events for select to onbrand_operator using (true);
grant select on audit.events to authenticated;

reset role;
