-- Isolation of brands: rights of the roles on the schemas, signed claims, the functions that row policies call,
-- advisory locks, and the procedures that protect a table. The roles exist before the first migration:
-- onbrand.db.logins makes them, because they belong to the server.

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
grant usage on schema identity to onbrand_definer;
grant create on schema private to onbrand_definer, onbrand_identity;

-- Nobody may execute a function until it is granted. This holds for functions of later migrations too.
alter default privileges for role onbrand_owner revoke execute on functions from public;
alter default privileges for role onbrand_definer revoke execute on functions from public;
alter default privileges for role onbrand_identity revoke execute on functions from public;

set role onbrand_definer;

-- The keys that sign claims. The newest two are valid, so that a key can be replaced while the old one is still in use.
-- Each key is stored as the two padded blocks of HMAC (RFC 2104): checks need not compute them.
create table private.claim_keys (
  id text primary key check (id ~ '^[0-9a-f]{16}$'),
  inner_pad bytea not null check (octet_length(inner_pad) = 64),
  outer_pad bytea not null check (octet_length(outer_pad) = 64),
  created_at timestamptz not null default clock_timestamp()
);
alter table private.claim_keys enable row level security;
alter table private.claim_keys force row level security;
create policy function_owner on private.claim_keys to onbrand_definer using (true) with check (true);

-- The claims of a transaction are in two settings with one signature (HMAC-SHA256): `request.jwt.claims`, which is
-- JSON, and `request.scope`, which the isolation policies read for every table; private.my_role lists its fields in
-- order. Every login can set claims, but only the platform can sign them. Claims name the server process and the start
-- time of the transaction. So claims of another transaction are not valid here, and claims of two transactions cannot
-- be combined.
create function private.transaction_stamp() returns text
language sql stable
return pg_backend_pid()::text || ' ' || extract(epoch from transaction_timestamp())::text;

create function private.is_signed(scope text, claims text) returns boolean
language plpgsql stable security definer set search_path = '' as $$
declare
  field text[] := string_to_array(scope, '|');
  signature text;
begin
  select encode(sha256(k.outer_pad || sha256(k.inner_pad || convert_to(scope || chr(10) || claims, 'UTF8'))), 'hex')
    into signature from private.claim_keys k where k.id = field[1];
  return coalesce(signature = current_setting('request.claims_signature', true)
    and field[3] = current_setting('role', true) and field[2] = private.transaction_stamp(), false);
end $$;

-- The claims, if they are signed for this role and this transaction; otherwise null.
create function private.claims() returns jsonb
language plpgsql stable security definer set search_path = '' as $$
declare claims text := nullif(current_setting('request.jwt.claims', true), '');
begin
  if claims is null or not private.is_signed(current_setting('request.scope', true), claims) then return null; end if;
  return claims::jsonb;
end $$;

-- Raise unless the claims are signed. For functions that only the platform may call.
create function private.must_be_signed() returns void
language plpgsql stable security definer set search_path = '' as $$
begin
  if private.claims() is null then
    raise exception 'the platform did not sign these claims' using errcode = '42501';
  end if;
end $$;

-- Raise unless the signed claims contain exactly this call: a function's name and its arguments. For functions that
-- must not take arguments of the caller's choice.
create function private.must_be_requested(variadic requested text[]) returns void
language plpgsql stable security definer set search_path = '' as $$
begin
  if private.claims() -> 'asks' is distinct from to_jsonb(requested) then
    raise exception 'the platform did not ask for this' using errcode = '42501';
  end if;
end $$;

create function private.uid() returns uuid
language sql stable
return (private.claims() ->> 'sub')::uuid;

create function private.ctx(name text) returns text
language sql stable
return private.claims() ->> name;

-- Whether a key or a session is valid at a time. Callers pass clock_timestamp(), because a statement can run for as
-- long as its sender wants. The planner inlines both functions.
create function private.is_key_valid(revoked_at timestamptz, expires_at timestamptz, at timestamptz) returns boolean
language sql immutable
return revoked_at is null and coalesce(expires_at, 'infinity') > at;

create function private.is_session_valid(ended_at timestamptz, expires_at timestamptz, last_seen_at timestamptz,
  idle interval, at timestamptz) returns boolean
language sql stable
return ended_at is null and least(expires_at, last_seen_at + idle) > at;

-- True if the credential is neither a key nor a token of some scopes: the user may do everything that their role
-- allows.
create function private.has_all_scopes() returns boolean
language sql stable
return not coalesce(private.claims() ?| array['key_id', 'scopes'], true);

-- The role in the brand of this transaction, read from the current rows: the role of the user, or of the member on
-- whose behalf a ticket was issued. Null if the user is not a member; if the claims are unsigned or belong to another
-- role or transaction; if the credential has ended or is bound to another brand; and if a key lacks the scope of this
-- call. Policies call this function once per table and statement, so it must be fast: few queries, no joins and no
-- calls.
create function private.my_role() returns text
language plpgsql stable security definer set search_path = '' as $$
declare
  scope text := current_setting('request.scope', true);
  field text[] := string_to_array(scope, '|');
  key_id text := field[1]; stamp text := field[2]; signed_role text := field[3];
  brand text := field[4]; caller_id uuid := nullif(field[5], ''); bound_to text := field[6];
  credential text := field[7]; credential_id uuid := nullif(field[8], ''); required_scope text := field[9];
  claimed_scopes text := field[10];
  inner_pad bytea; outer_pad bytea; scopes text[]; found_role text;
begin
  if brand = '' or (bound_to <> '' and bound_to <> brand) then return null; end if;
  select k.inner_pad, k.outer_pad into inner_pad, outer_pad from private.claim_keys k where k.id = key_id;
  if encode(sha256(outer_pad || sha256(inner_pad || convert_to(
      scope || chr(10) || current_setting('request.jwt.claims', true), 'UTF8'))), 'hex')
    is distinct from current_setting('request.claims_signature', true) then return null; end if;
  if signed_role <> current_setting('role', true)
     or stamp <> pg_backend_pid()::text || ' ' || extract(epoch from transaction_timestamp())::text then
    return null;
  end if;
  if credential = 'key' then
    select k.scopes into scopes from app.api_keys k
      where k.brand_id = brand and k.id = credential_id and k.user_id = caller_id
        and private.is_key_valid(k.revoked_at, k.expires_at, clock_timestamp());
    if not coalesce(required_scope = any (scopes), false)
       or (claimed_scopes <> '' and not required_scope = any (string_to_array(claimed_scopes, ','))) then
      return null;
    end if;
  elsif credential = 'session' then
    perform 1 from identity.sessions s
      where s.id = credential_id and s.user_id = caller_id
        and private.is_session_valid(s.ended_at, s.expires_at, s.last_seen_at, s.idle, clock_timestamp());
    if not found then return null; end if;
  elsif credential <> '' then
    return null;
  end if;
  select bu.role into found_role from app.brand_users bu where bu.brand_id = brand and bu.user_id = caller_id;
  return found_role;
end $$;

-- The brand that the claims name; the claims are not verified.
create function private.claimed_brand_id() returns text
language sql stable
return split_part(current_setting('request.scope', true), '|', 4);

-- The same as an object with one field, for the condition of app.brand_isolation_condition.
create function private.claimed_brand_object() returns jsonb
language sql stable
return jsonb_build_object(coalesce(private.claimed_brand_id(), ''), true);

-- The brand of this transaction if the user is a member of it. Null shows no rows. For policies of `authenticated`;
-- ticket_brand is its twin for `brand_system`; each role may execute only its own.
create function private.my_brand() returns text
language sql stable
return case when private.my_role() is not null then private.claimed_brand_id() end;

-- The brand of this transaction's ticket. Null when the member on whose behalf it was issued is no longer a member.
create function private.ticket_brand() returns text
language sql stable
return case when private.my_role() is not null then private.claimed_brand_id() end;

-- Whether the credential has a scope. The row of a key lists its scopes; claims may only restrict them further.
create function private.has_scope(scope text) returns boolean
language plpgsql stable security definer set search_path = '' as $$
declare c jsonb := private.claims();
begin
  if c is null then return false; end if;
  if not c ?| array['key_id', 'session_id', 'scopes'] then return true; end if;  -- a token without scopes
  if c ->> 'scopes' is not null and not c -> 'scopes' ? has_scope.scope then return false; end if;
  if c ? 'session_id' then
    return exists (select 1 from identity.sessions s
      where s.id = (c ->> 'session_id')::uuid and s.user_id = (c ->> 'sub')::uuid and not c ? 'key_id'
        and private.is_session_valid(s.ended_at, s.expires_at, s.last_seen_at, s.idle, clock_timestamp()));
  end if;
  if c ? 'key_id' then
    return exists (select 1 from app.api_keys k
      where k.brand_id = c ->> 'brand_id' and k.id = (c ->> 'key_id')::uuid and k.user_id = (c ->> 'sub')::uuid
        and private.is_key_valid(k.revoked_at, k.expires_at, clock_timestamp()) and has_scope.scope = any (k.scopes));
  end if;
  return true;
end $$;

-- Whether the user is an admin of the brand of this transaction and the credential has the scope `manage`.
create function private.is_admin() returns boolean
language sql stable
return coalesce(private.my_role() = 'admin'
  and (split_part(current_setting('request.scope', true), '|', 7) <> 'key' or private.has_scope('manage')), false);

-- Whether the key or the session of the claims is still valid. The claims themselves do not say so.
create function private.is_credential_valid() returns boolean
language plpgsql stable security definer set search_path = '' as $$
declare
  c jsonb := private.claims();
begin
  if c is null then return false; end if;
  if c ->> 'key_id' is not null then  -- nested, so that most calls run no query
    if not exists (select 1 from app.api_keys k
        where k.id = (c ->> 'key_id')::uuid and k.brand_id = c ->> 'brand_id'
          and k.user_id = (c ->> 'sub')::uuid and k.revoked_at is null
          and (k.expires_at is null or k.expires_at > clock_timestamp())) then
      return false;
    end if;
  end if;
  return c ->> 'session_id' is null or private.has_valid_session((c ->> 'session_id')::uuid, (c ->> 'sub')::uuid);
end $$;

-- Whether the caller may act in the brand: as a member, or with a ticket of that brand.
create function private.may_act_in(brand text) returns boolean
language sql stable security definer set search_path = '' as $$
  select case current_setting('role', true)
    when 'authenticated' then brand = private.my_brand()
    when 'brand_system' then brand = private.ticket_brand()
    else false end
$$;

-- Keys of advisory locks come from a secret seed. Advisory locks have no row security: every login can take one and
-- list all that are held. Without the seed, nobody can compute a key or recognize one.
create table private.lock_seed (one boolean primary key default true check (one), seed bigint not null);
alter table private.lock_seed enable row level security;
alter table private.lock_seed force row level security;
create policy function_owner on private.lock_seed to onbrand_definer using (true) with check (true);
insert into private.lock_seed (seed) values (
  ('x' || left(replace(gen_random_uuid()::text, '-', ''), 12))::bit(48)::bigint);

create function private.lock_key(kind text, id text) returns bigint
language sql stable security definer set search_path = '' as $$
  select pg_catalog.hashtextextended(kind || ':' || id, s.seed) from private.lock_seed s
$$;

-- Take one of the services' locks of the brand until the end of the transaction. Does nothing if the caller may not act
-- in the brand.
create function private.lock_brand(kind text, brand text) returns void
language plpgsql volatile security definer set search_path = '' as $$
begin
  if kind not in ('admission', 'training', 'members', 'metadata', 'uploads') then
    raise exception 'no such lock' using errcode = '22023';
  end if;
  if coalesce(private.may_act_in(brand), false) then
    perform pg_catalog.pg_advisory_xact_lock(private.lock_key(kind, brand));
  end if;
end $$;

reset role;

grant execute on function private.claims(), private.must_be_signed(), private.must_be_requested(text[])
  to anon, authenticated, brand_system, onbrand_dispatcher, onbrand_owner, onbrand_identity;
grant execute on function private.uid(), private.ctx(text), private.my_role(), private.claimed_brand_id(),
  private.my_brand(), private.is_admin(), private.has_scope(text)
  to authenticated, brand_system, onbrand_owner, onbrand_identity;
grant execute on function private.ticket_brand() to brand_system, onbrand_owner;
grant execute on function private.claimed_brand_object() to authenticated, brand_system, onbrand_owner;
grant execute on function private.has_all_scopes() to authenticated, onbrand_owner;
grant execute on function private.is_credential_valid() to authenticated, onbrand_owner, onbrand_identity;
grant execute on function private.lock_brand(text, text) to authenticated, brand_system;

set role onbrand_owner;

create function app.tg_brand_immutable() returns trigger
language plpgsql set search_path = '' as $$
begin
  if new.brand_id is distinct from old.brand_id then
    raise exception 'brand_id is immutable' using errcode = '42501';
  end if;
  return new;
end $$;

-- The condition of a policy that limits reads to one brand, as the text of an SQL expression. Arguments: the column
-- that holds the brand, and the call that returns the brand of this transaction.
--
-- A caller who may run SQL must not learn whether a hidden row meets a condition: not from the row counts of EXPLAIN,
-- not from statistics and not from time. So PostgreSQL must evaluate this condition before the caller's conditions:
--   1. `(column, true) = (select brand, brand is not null ...)` becomes two conditions on one subquery. The second is a
--      bare parameter, which costs nothing and is sorted first: the subquery runs at the first row, whatever its
--      content.
--   2. `(select claimed_brand_object())[column] is not null` costs nothing either. It is a jsonb subscript; a
--      comparison would have the same cost as the caller's. Condition 1 has verified the claimed brand by then.
--   3. `column = brand` finds the rows: every index begins with the brand, so an index scan meets no other rows.
-- The planner keeps no statistics of the columns, because EXPLAIN would reveal them. See docs/decisions/0170.
create function app.brand_isolation_condition(column_name text, brand_call text) returns text
language sql immutable set search_path = '' as $$
  select format('(%1$I, true) = (select s.brand, s.brand is not null from (select %2$s offset 0) as s (brand)) '
    'and ((select private.claimed_brand_object()))[%1$I] is not null', column_name, brand_call)
$$;

-- Set the statistics target of all columns of a table to 0.
create procedure app.disable_column_statistics(t regclass)
language plpgsql set search_path = '' as $$
declare col name;
begin
  for col in select a.attname from pg_catalog.pg_attribute a
    where a.attrelid = t and a.attnum > 0 and not a.attisdropped
  loop
    execute format('alter table %s alter column %I set statistics 0', t, col);
  end loop;
end $$;

-- Isolate the brands in a table with brand_id: force row security, add one restrictive policy per family of roles, and
-- make brand_id immutable. Migrations call it for each new table. A migration that adds a column later calls
-- app.disable_column_statistics again.
create procedure app.enable_brand_isolation(t regclass)
language plpgsql set search_path = '' as $$
begin
  execute format('alter table %s enable row level security', t);
  execute format('alter table %s force row level security', t);
  execute format('create policy brand_isolation_user on %s as restrictive for all to authenticated '
    'using (%s) with check (brand_id = (select private.my_brand()))', t,
    app.brand_isolation_condition('brand_id', 'private.my_brand()'));
  execute format('create policy brand_isolation_system on %s as restrictive for all to brand_system '
    'using (%s) with check (brand_id = (select private.ticket_brand()))', t,
    app.brand_isolation_condition('brand_id', 'private.ticket_brand()'));
  execute format('create policy function_owner on %s to onbrand_definer using (true) with check (true)', t);
  execute format('create trigger brand_immutable before update on %s '
    'for each row execute function app.tg_brand_immutable()', t);
  call app.disable_column_statistics(t);
end $$;

-- Require a scope for a verb on a table, whatever its permissive policies allow. Migrations call it for writes that
-- members may make. Writes that need an admin require `manage` already, because is_admin() is false without it.
create procedure app.require_scope(t regclass, verb text, scope text)
language plpgsql set search_path = '' as $$
begin
  if verb not in ('insert', 'update', 'delete') then
    raise exception 'require_scope accepts insert, update and delete' using errcode = '22023';
  end if;
  execute format('create policy %I on %s as restrictive for %s to authenticated %s %s', 'scope_' || verb, t, verb,
    case when verb <> 'insert' then format('using ((select private.has_scope(%L)))', scope) end,
    case when verb <> 'delete' then format('with check ((select private.has_scope(%L)))', scope) end);
end $$;

revoke execute on procedure app.enable_brand_isolation(regclass), app.disable_column_statistics(regclass),
  app.require_scope(regclass, text, text) from public;

reset role;
